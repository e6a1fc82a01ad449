"""Every metric of texts against a reference on 1,000 generated cases that go through all of its branches.

References are the libraries that define a metric, or rules written anew here in another way: by brute force, or by
cases whose value is known because they were made to have it.
"""

from __future__ import annotations

import itertools
import random
import statistics
import string
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from types import ModuleType

import jiwer
import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from support.branches import Branches
from vlm_lora.metrics.rules import (
    anls,
    bleu,
    edit_distance,
    error_rates,
    exact_match,
    relaxed_accuracy,
    rouge_l,
    token_f1,
)
from vlm_lora.metrics.rules import vqa_accuracy as vqa
from vlm_lora.metrics.rules.vqa_words import PUNCTUATION

CASES = 1000
LETTERS = "aab \u00e9\u732b\U0001f600"
WORDS = ("the", "a", "cat", "Cat", "sat", "on", "mat", "dog.", "it's", "\u732b", "3", "-")


def texts(generator: random.Random, longest: int = 9) -> str:
    return "".join(generator.choices(LETTERS, k=generator.randrange(longest)))


def changed(generator: random.Random, text: str) -> str:
    """Return a text near another: some letters doubled, left out or swapped for others, some in capitals."""
    kept = "".join(generator.choice((letter,) * 6 + ("", letter * 2, "x", letter.upper())) for letter in text)
    return generator.choice((text, kept, kept, kept.upper(), f" {kept}"))


def sentence(generator: random.Random, longest: int = 8) -> str:
    return " ".join(generator.choices(WORDS, k=generator.randrange(longest)))


@cache
def distance(first: str, second: str) -> int:
    """Levenshtein's definition."""
    if not first or not second:
        return len(first) + len(second)
    return min(
        distance(first[1:], second) + 1,
        distance(first, second[1:]) + 1,
        distance(first[1:], second[1:]) + (first[0] != second[0]),
    )


def watched(*modules: ModuleType) -> Branches:
    branches = Branches(*modules)
    assert len(branches) > 0
    return branches


def test_branches_are_seen() -> None:
    """The control: a condition that was only true is told, and no longer once it was false."""
    with watched(relaxed_accuracy) as branches:
        relaxed_accuracy.relaxed_accuracy("5", ["5"])
    assert any(line.endswith("[False]") for line in branches.one_sided), "no text ended with a percent sign"
    with watched(relaxed_accuracy) as branches:
        for answer in ("5", "5%", "five", "0"):
            relaxed_accuracy.relaxed_accuracy(answer, [answer])
    assert branches.one_sided == [], "percent signs, texts and zero went the other way"


def test_exact_match() -> None:
    generator = random.Random(1)
    for _ in range(CASES):
        accepted = [texts(generator, 3) for _ in range(generator.randrange(1, 4))]
        right = generator.random() < 0.5
        answer = generator.choice(accepted) if right else "other"
        written = f"{generator.choice(('', '<think>b</think>', ' '))}{answer}{generator.choice(('', chr(10)))}"
        assert exact_match.exact_match(written, accepted) == right


def relaxed_case(generator: random.Random) -> tuple[str, str, bool]:
    """Return an answer, what is expected, and whether that is right: made so, with exact fractions."""
    wanted = Fraction(generator.randint(1, 9999) * generator.choice((-1, 1)), 100)
    kind = generator.randrange(6)
    if kind == 0:  # texts
        word = generator.choice(("Yes", "1,541", "2010 and 2011", "\u00c9", ""))
        other = generator.choice((word.upper(), word.lower(), f"{word}x"))
        return other, word, other.lower() == word.lower()
    if kind == 1:  # expected zero: only the same text
        answer = generator.choice(("0", "0.0", "0.01", "none"))
        return answer, "0", answer == "0"
    if kind == 2:  # a number is expected and a text is given
        return "many", f"{float(wanted)}", False
    off = Fraction(generator.choice((-70, -6, -4, 0, 4, 6, 70)), 100)
    given = wanted * (1 + off)
    right = abs(off) < Fraction(5, 100)
    marks = generator.choice((("", ""), ("%", "%"), ("%", ""), ("", "%")))
    given_text = f"{float(given * 100 if marks[0] else given):.6f}{marks[0]}"
    wanted_text = f"{float(wanted * 100 if marks[1] else wanted)}{marks[1]}"
    return given_text, wanted_text, right


def test_relaxed_accuracy() -> None:
    generator = random.Random(2)
    made = []
    with watched(relaxed_accuracy) as branches:
        for _ in range(CASES):
            answer, expected, right = relaxed_case(generator)
            made.append(right)
            assert relaxed_accuracy.relaxed_accuracy(answer, [expected]) == right, (answer, expected)
    assert branches.one_sided == []
    assert 300 < sum(made) < 700


def test_anls_and_edit_distance() -> None:
    generator = random.Random(3)
    values = []
    with watched(anls, edit_distance) as branches:
        for _ in range(CASES):
            accepted = [texts(generator) for _ in range(generator.randrange(1, 4))]
            answer = changed(generator, generator.choice(accepted))
            pairs = [(answer.strip().lower(), text.strip().lower()) for text in accepted]
            assert [edit_distance.edit_distance(*pair) for pair in pairs] == [distance(*pair) for pair in pairs]
            lengths = [distance(*pair) / max(*map(len, pair), 1) for pair in pairs]
            best = max(1 - length if length < 0.5 else 0.0 for length in lengths)
            values.append(anls.anls(answer, accepted))
            assert values[-1] == pytest.approx(best, abs=1e-12)
    assert branches.one_sided == []
    assert {0.0, 1.0} < set(values)
    assert len(set(values)) > 10


def test_edit_distance_of_long_sequences() -> None:
    """More than the bits of a machine word; words as well as letters."""
    generator = random.Random(4)
    for _ in range(30):
        first, second = ([generator.choice("abc") for _ in range(generator.randrange(60, 90))] for _ in range(2))
        table = list(range(len(second) + 1))
        for row, item in enumerate(first, 1):
            before, table[0] = table[0], row
            for place, other in enumerate(second, 1):
                before, table[place] = (
                    table[place],
                    min(table[place] + 1, table[place - 1] + 1, before + (item != other)),
                )
        assert edit_distance.edit_distance(first, second) == table[-1]


def plain_vqa(text: str) -> str:
    """VQAEval's normalization, letter by letter and word by word."""
    squeezed = any(
        text[place] == "," and text[place - 1].isdigit() and text[place + 1].isdigit()
        for place in range(1, len(text) - 1)
    )
    out = ""
    for letter in text:
        if letter not in PUNCTUATION:
            out += letter
        elif squeezed or letter + " " in text or " " + letter in text:
            continue
        else:
            out += " "
    dots = [place for place, letter in enumerate(out) if letter == "." and not out[place + 1 : place + 2].isdigit()]
    out = "".join(letter for place, letter in enumerate(out) if place not in dots[:32])
    words = [{"none": "0", "zero": "0", "two": "2", "ten": "10"}.get(word, word) for word in out.lower().split()]
    spelled = {"dont": "don't", "couldnt've": "couldn't've", "'ow'sat": "'ow's'at"}
    return " ".join(spelled.get(word, word) for word in words if word not in ("a", "an", "the"))


def vqa_text(generator: random.Random) -> str:
    pool = (
        "The",
        "two",
        "dont",
        "couldnt've",
        "'ow'sat",
        "cat",
        "Cat!",
        "a",
        "1,000",
        "3.5",
        "b/w",
        "none",
        "x.",
        "(y)",
    )
    ends = ("", "", ".", "?", " -", "\n", "\t")
    return " ".join(generator.choices(pool, k=generator.randrange(1, 3))) + generator.choice(ends)


def test_vqa_accuracy() -> None:
    generator = random.Random(5)
    values = []
    with watched(vqa) as branches:
        for number in range(CASES):
            pool = [vqa_text(generator) for _ in range(generator.randrange(1, 4))]
            annotators = [generator.choice(pool) for _ in range(generator.choice((0, 1, 3, 10, 10, 10)))]
            answer = generator.choice((*pool, vqa_text(generator)))
            lines = [text.replace("\n", " ").replace("\t", " ").strip() for text in (answer, *annotators)]
            if len(set(lines[1:])) > 1:
                lines = [plain_vqa(text) for text in lines]
            said, others = lines[0], lines[1:]
            left_out = [others[:place] + others[place + 1 :] for place in range(len(others))]
            wanted = statistics.fmean([min(1, rest.count(said) / 3) for rest in left_out]) if others else 0.0
            values.append(vqa.vqa_accuracy(answer, annotators))
            assert values[-1] == pytest.approx(wanted, abs=1e-12), (number, answer, annotators)
    assert branches.one_sided == []
    assert {0.0, 1.0} < set(values)


def plain_words(text: str) -> list[str]:
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def test_token_f1() -> None:
    generator = random.Random(6)
    values = []
    with watched(token_f1) as branches:
        for _ in range(CASES):
            answer, accepted = (
                sentence(generator, 5),
                [sentence(generator, 5) for _ in range(generator.randrange(1, 3))],
            )
            best = 0.0
            for expected in map(plain_words, accepted):
                given, left, same = plain_words(answer), list(expected), 0
                for word in given:
                    if word in left:
                        left.remove(word)
                        same += 1
                if not given or not expected:
                    best = max(best, float(given == expected))
                elif same:
                    precision, recall = same / len(given), same / len(expected)
                    best = max(best, 2 * precision * recall / (precision + recall))
            values.append(token_f1.token_f1(answer, accepted))
            assert values[-1] == pytest.approx(best, abs=1e-12)
    assert branches.one_sided == []
    assert {0.0, 1.0} < set(values)


@pytest.mark.parametrize(
    ("name", "edits", "whole"),
    [("cer", error_rates.character_edits, jiwer.cer), ("wer", error_rates.word_edits, jiwer.wer)],
)
def test_error_rates(name: str, edits: Callable[[str, str], tuple[int, int]], whole: Callable[..., float]) -> None:
    """All rows together as jiwer gives them for lists; each row, and the best of several, by jiwer alone."""
    generator = random.Random(7)
    make = texts if name == "cer" else sentence
    expected = [[make(generator) for _ in range(generator.randrange(1, 4))] for _ in range(CASES)]
    answers = [changed(generator, generator.choice(row)) for row in expected]
    count, combine = error_rates.error_rate(name, edits)
    counted = count(answers, expected)
    best = [min(row, key=lambda text: whole(text, answer)) for answer, row in zip(answers, expected, strict=True)]
    assert combine(counted.sums.sum(axis=0))[name] == pytest.approx(whole(best, answers), abs=1e-12)
    alone = [float(whole(text, answer)) for text, answer in zip(best, answers, strict=True)]
    assert [row[name] for row in counted.rows] == pytest.approx(alone, abs=1e-12)
    single = [[text] for text in best]
    assert count(answers, single).sums.tolist() == counted.sums.tolist()


def test_bleu() -> None:
    """All rows together, and of 1,000 sums of rows, sacrebleu's own figure."""
    generator = random.Random(8)
    expected = [[sentence(generator, 12) for _ in range(generator.randrange(1, 4))] for _ in range(CASES)]
    answers = [changed(generator, generator.choice(row)) for row in expected]
    counted = bleu.count(answers, expected)
    streams = [list(stream) for stream in itertools.zip_longest(*expected)]
    whole = sacrebleu.corpus_bleu(answers, streams)
    assert float(bleu.combine(counted.sums.sum(axis=0))["bleu"]) == pytest.approx(whole.score / 100, abs=1e-12)
    numbers = np.random.default_rng(8).integers(CASES, size=(CASES, 2))
    sums = counted.sums[numbers].sum(axis=1)
    values = bleu.combine(sums)["bleu"]
    for row, value in zip(sums.astype(int).tolist(), values, strict=True):
        wanted = BLEU.compute_bleu(row[2:6], row[6:], row[0], row[1], smooth_method="exp")
        assert value == pytest.approx(wanted.score / 100, abs=1e-12)
    assert (values == 0).any()
    assert len(set(values.tolist())) > 100


def test_rouge_l() -> None:
    generator = random.Random(9)
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    with watched(rouge_l) as branches:
        for number in range(CASES):
            answer, accepted = sentence(generator), [sentence(generator) for _ in range(number % 4)]
            best = max((scorer.score(text, answer)["rougeL"].fmeasure for text in accepted), default=0.0)
            assert rouge_l.rouge_l(answer, accepted) == pytest.approx(best, abs=1e-12)
    assert branches.one_sided == []
