"""Metrics of JSON, boxes and pages against rules written anew, by brute force, on 1,000 generated cases each.

The cases go through all branches of the rules' files.
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import jiwer
import numpy as np
import pytest

from support.branches import Branches
from vlm_lora.metrics.rules import box_map, boxes, json_fields, ocr_page
from vlm_lora.metrics.rules.anls import anls

CASES = 1000
Box = dict[str, Any]


def value(generator: random.Random, depth: int = 0) -> Any:
    kind = generator.randrange(8 if depth < 3 else 5)
    if kind >= 6:
        return {generator.choice("abc"): value(generator, depth + 1) for _ in range(generator.randrange(3))}
    if kind == 5:
        return [value(generator, depth + 1) for _ in range(generator.randrange(3))]
    return generator.choice((None, True, False, 0, 1, 1.0, 2.5, "x", "x ", "\u732b", ""))


def outer(generator: random.Random) -> Any:
    """Return an object or a list."""
    made = value(generator)
    return made if isinstance(made, dict | list) else {"a": made}


def fields(held: Any, path: str = "") -> list[str]:
    """Write each leaf as a text of its own: the path, and what stands there."""
    if isinstance(held, dict) and held:
        return [leaf for key in held for leaf in fields(held[key], f"{path}/{key}")]
    if isinstance(held, list) and held:
        return [leaf for item in held for leaf in fields(item, path)]
    if isinstance(held, str):
        return [f"{path} text {held.strip()}"]
    if isinstance(held, int | float) and not isinstance(held, bool):
        return [f"{path} number {float(held)}"]
    return [f"{path} {json.dumps(held)}"]


def shared(first: list[str], second: list[str]) -> int:
    return sum(min(first.count(leaf), second.count(leaf)) for leaf in set(first))


def written(generator: random.Random, held: Any) -> tuple[str, bool]:
    """Return an answer that holds a value, and whether it is JSON as it should be."""
    text = json.dumps(held, ensure_ascii=generator.random() < 0.5, indent=generator.choice((None, 1)))
    forms = {
        text: True,
        f"```json\n{text}\n```": True,
        f"<call>{text}</call>": True,
        f"{text}{text}": True,
        f"Here: {text}": False,
        f"{text} [see]": False,
        text[:-1]: False,
        f'{{"a": NaN, "b": {text}}}': False,
        "words": False,
        "": False,
        "[" * 3000 + text: False,
    }
    return generator.choice(list(forms.items()))


def test_json() -> None:
    generator = random.Random(1)
    answers, references, wanted = [], [], []
    for _ in range(CASES):
        expected = outer(generator)
        given = expected if generator.random() < 0.4 else outer(generator)
        answer, valid = written(generator, given)
        answers.append(answer)
        # The accepted answer in tags allows the same tags.
        accepted = [f"<call>{json.dumps(expected)}</call>", json.dumps(expected)]
        known = generator.random() < 0.8
        references.append(accepted if known else ["no JSON"])
        valid = valid and (known or "<call>" not in answer)
        twice = 2 if valid and answer == f"{answer[: len(answer) // 2]}" * 2 else 1
        leaves = fields(given) * twice if valid else []
        right = fields(expected)
        f1 = 2 * shared(leaves, right) / (len(leaves) + len(right)) if known else None
        wanted.append((float(valid), f1))
    with Branches(json_fields) as branches:
        counted = json_fields.count(answers, references)
        assert all(json_fields.is_json(accepted) == (accepted != "no JSON") for row in references for accepted in row)
    assert branches.one_sided == []
    found = [(row["json_valid"], row.get("json_field_f1")) for row in counted.rows]
    assert found == [(valid, None if f1 is None else pytest.approx(f1, abs=1e-12)) for valid, f1 in wanted]
    assert float(json_fields.combine(counted.sums.sum(axis=0))["json_valid"]) == statistics.fmean(v for v, _ in wanted)
    scores = [f1 for _, f1 in wanted if f1 is not None]
    assert {0.0, 1.0} < set(scores)


def a_box(generator: random.Random, *, points: bool = True) -> Box:
    left, top = generator.randrange(7), generator.randrange(7)
    numbers = [left, top, left + generator.randrange(7), top + generator.randrange(7)]
    label = generator.choice(("cat", "Cat", "dog", "cat", ""))
    numbers = numbers[:2] if points and generator.random() < 0.1 else numbers
    return {"bbox": [float(number) for number in numbers], "label": label, "image_id": int(generator.random() < 0.2)}


def some(generator: random.Random, most: int = 5, *, points: bool = True) -> list[Box]:
    return [a_box(generator, points=points) for _ in range(generator.randrange(most))]


def moved(generator: random.Random, given: Sequence[Box]) -> list[Box]:
    """Return boxes near others, in another order, some left out."""
    kept = [
        {**box, "bbox": [number + generator.choice((0.0, 0.0, 1.0)) for number in box["bbox"]]}
        for box in given
        if generator.random() < 0.8
    ]
    generator.shuffle(kept)
    return kept


def cells(numbers: Sequence[float]) -> set[tuple[int, int]]:
    left, top, right, bottom = map(int, numbers)
    return set(itertools.product(range(left, right), range(top, bottom)))


@cache
def shared_cells(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """Count the cells of a grid that two boxes share, by those that they cover."""
    one, other = cells(first), cells(second)
    return len(one & other) / len(one | other) if one | other else 0.0


def overlap(first: Box, second: Box) -> float:
    return shared_cells(tuple(first["bbox"]), tuple(second["bbox"]))


def most_pairs(given: Sequence[Box], wanted: Sequence[Box], threshold: float) -> int:
    """Try every way to give each generated box an expected one of its own, or none."""

    def fits(one: Box, other: Box) -> bool:
        label, expected = one["label"].strip().lower(), other["label"].strip().lower()
        same = one["image_id"] == other["image_id"] and expected in ("", label)
        return same and overlap(one, other) >= threshold

    def best(number: int, free: frozenset[int]) -> int:
        if number == len(given):
            return 0
        taken = (1 + best(number + 1, free - {n}) for n in free if fits(given[number], wanted[n]))
        return max((best(number + 1, free), *taken))

    return best(0, frozenset(range(len(wanted))))


def boxed(row: Sequence[Box]) -> list[Box]:
    return [box for box in row if len(box["bbox"]) == 4]


def test_boxes() -> None:
    generator = random.Random(2)
    expected = [some(generator) for _ in range(CASES)]
    given = [moved(generator, row) + some(generator, 2) for row in expected]
    with Branches(boxes) as branches:
        counted = boxes.count(given, expected)
    assert branches.one_sided == []
    for one, wanted, found in zip(given, expected, counted.sums.tolist(), strict=True):
        pairs = most_pairs(boxed(one), boxed(wanted), 0.5)
        assert found == [pairs, len(boxed(one)), len(boxed(wanted)), 1]
    right, generated, there, _ = counted.sums.sum(axis=0)
    figures = boxes.combine(counted.sums.sum(axis=0))
    precision, recall = right / generated, right / there
    assert [float(value) for value in figures.values()] == pytest.approx(
        [precision, recall, 2 * precision * recall / (precision + recall)]
    )
    assert 0.2 < precision < 0.9


def crossed(count: int) -> Iterator[tuple[list[Box], list[Box]]]:
    """Yield boxes in a chain, each of which fits two: only one way matches all of them."""
    for size in range(2, count):
        row = [{"bbox": [0.0, 4.0 * n, 10.0, 4.0 * n + 10], "label": "", "image_id": 0} for n in range(size)]
        yield row[::-1], [{**box, "bbox": [0.0, 4.0 * n + 2, 10.0, 4.0 * n + 12]} for n, box in enumerate(row)]


def test_a_chain_of_boxes_is_matched_whole() -> None:
    for given, expected in crossed(40):
        assert boxes.count_row(given, expected, 0.5) == (len(given),) * 3
        greedy, free = 0, list(expected)
        for one in given:
            fitting = next((box for box in free if boxes.iou(one["bbox"], box["bbox"]) >= 0.5), None)
            if fitting is not None:
                free.remove(fitting)
                greedy += 1
        assert greedy < len(given), "the control: taking the first that fits loses some"


def plain_map(given: Sequence[Sequence[Box]], expected: Sequence[Sequence[Box]]) -> float:
    """COCO's mean average precision with all scores equal, from its definition."""
    found = []
    labels = {box["label"].lower() for row in expected for box in boxed(row)}
    for label, threshold in itertools.product(labels, np.arange(0.5, 1.0, 0.05)):
        total, hits = 0, []
        for one, wanted in zip(given, expected, strict=True):
            for image in (0, 1):
                free = [b for b in boxed(wanted) if b["label"].lower() == label and b["image_id"] == image]
                total += len(free)
                for box in [b for b in boxed(one) if b["label"].lower() == label and b["image_id"] == image][:100]:
                    near = max([overlap(box, other) for other in free], default=0.0)
                    hit = bool(free) and near >= threshold - 1e-9
                    if hit:  # of equally near ones COCO takes the last
                        free.pop(max(n for n, other in enumerate(free) if overlap(box, other) == near))
                    hits.append(int(hit))
        right = list(itertools.accumulate(hits))
        precision = [count / place for place, count in enumerate(right, 1)]
        best = [max(precision[place:]) for place in range(len(precision))]
        at = [next((n for n, count in enumerate(right) if count / total >= recall - 1e-12), None) for recall in RECALLS]
        found.append(statistics.fmean(0.0 if place is None else best[place] for place in at))
    return statistics.fmean(found)


RECALLS = np.linspace(0, 1, 101)


def test_map_in_order() -> None:
    generator = random.Random(3)
    cases = []
    for _ in range(CASES):
        expected = [some(generator, 4) for _ in range(2)]
        cases.append(([moved(generator, row) + some(generator, 2) for row in expected], expected))
    with Branches(box_map) as branches:  # which watches pycocotools' calls too, and takes its time
        values = [box_map.figures(*case)["box_map_in_order"] for case in cases[:100]]
    assert branches.one_sided == []
    values += [box_map.figures(*case)["box_map_in_order"] for case in cases[100:]]
    for found, (given, expected) in zip(values, cases, strict=True):
        nothing = float(not any(map(boxed, given)))
        assert found == pytest.approx(plain_map(given, expected) if any(map(boxed, expected)) else nothing, abs=1e-9)
    assert len({round(number, 6) for number in values}) > 50


def page(generator: random.Random) -> tuple[str, str | None, list[Box] | None]:
    """Return an answer about a page, its text in words with single blanks (None for boxes alone), and its boxes."""
    words = generator.choices(("one", "two", "three", "\u732b"), k=generator.randrange(1, 5))
    found = [a_box(generator, points=False) for _ in words]
    kind = generator.randrange(5)
    if kind == 4:
        return "[]", "", []
    if kind == 0:
        return generator.choice((" ", "\n", "  \n")).join(words), " ".join(words), None
    if kind == 1:
        return json.dumps([box["bbox"] for box in found]), None, found
    items: list[Mapping[str, Any]] = [
        {"text": word, "bbox": box["bbox"]} if generator.random() < 0.5 else {"bbox": box["bbox"], "text": word}
        for word, box in zip(words, found, strict=True)
    ]
    return json.dumps(items if kind == 2 else {"lines": items}), " ".join(words), found


def test_pages() -> None:
    generator = random.Random(4)
    expected = [page(generator) for _ in range(CASES)]
    given = [one if generator.random() < 0.3 else page(generator) for one in expected]
    predictions = [
        (one[0], None if wanted[2] is None else one[2] or []) for one, wanted in zip(given, expected, strict=True)
    ]
    references = [([text, text], found or []) for text, _, found in expected]
    with Branches(ocr_page) as branches:
        counted = ocr_page.count(predictions, references)
    assert branches.one_sided == []
    figures = {name: float(number) for name, number in ocr_page.combine(counted.sums.sum(axis=0)).items()}
    texts = [(one[1] or "", wanted[1]) for one, wanted in zip(given, expected, strict=True) if wanted[1] is not None]
    hypotheses, truths = [one for one, _ in texts], [wanted for _, wanted in texts]
    wanted = {
        "ocr_cer": jiwer.cer(truths, hypotheses),
        "ocr_wer": jiwer.wer(truths, hypotheses),
        "ocr_anls": statistics.fmean(anls(one, [truth]) for one, truth in texts),
        "ocr_exact_match": statistics.fmean(one == truth for one, truth in texts),
    }
    places = [(one[1], found[1]) for one, found in zip(predictions, references, strict=True) if one[1] is not None]
    bare = [[[{**box, "label": ""} for box in row] for row in pair] for pair in places]
    for threshold in (50, 75):
        right = sum(most_pairs(one, there, threshold / 100) for one, there in bare)
        generated, total = (sum(len(pair[side]) for pair in bare) for side in (0, 1))
        for name, number in (("precision", right / generated), ("recall", right / total)):
            wanted[f"ocr_box_{name}_{threshold}"] = number
        wanted[f"ocr_box_f1_{threshold}"] = 2 * right / (generated + total)
    assert figures == pytest.approx(wanted, abs=1e-12)
