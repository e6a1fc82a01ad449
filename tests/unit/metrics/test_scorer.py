"""What a scorer gives for answers: figures, intervals, groups, values by row."""

from __future__ import annotations

import random
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlm_lora.batching.boxes.writing import Region
from vlm_lora.metrics import loading
from vlm_lora.metrics.choice import choose
from vlm_lora.metrics.facts import DataFacts
from vlm_lora.metrics.intervals import bootstrap, wilson
from vlm_lora.metrics.scored import Answered
from vlm_lora.metrics.statistics import mean_of
from vlm_lora.metrics.table import METRICS

NOTHING = DataFacts()


def answered(generated: str, *accepted: str, **more: Any) -> Answered:
    return Answered(row="rows.jsonl row 0", generated=generated, accepted=accepted, **more)


def region(*numbers: float, label: str | None = None) -> Region:
    return Region(numbers=numbers, label=label, image=0)


def test_figures_rows_and_groups() -> None:
    scorer = choose(["anls", "token_f1"], NOTHING)
    scores = scorer.score(
        [
            answered("a cat", "the cat", task="name", origin="pets"),
            answered("abcx", "abcd", task="spell", origin="pets"),
            answered("dog", "cat", task="name"),
        ]
    )
    assert scorer.names == ("exact_match", "anls", "token_f1")
    assert scores.count == 3
    assert scores.rows == [
        {"exact_match": 0, "anls": pytest.approx(4 / 7), "token_f1": 1},
        {"exact_match": 0, "anls": 0.75, "token_f1": 0},
        {"exact_match": 0, "anls": 0, "token_f1": 0},
    ]
    assert scores.figures == pytest.approx({"exact_match": 0, "anls": (4 / 7 + 0.75) / 3, "token_f1": 1 / 3})
    assert set(scores.groups) == {"task", "source"}
    assert scores.groups["task"]["name"] == pytest.approx({"rows": 2, "exact_match": 0, "anls": 2 / 7, "token_f1": 0.5})
    assert scores.groups["source"]["pets"]["rows"] == 2
    assert scorer.score([]).figures == {}


def test_thoughts_are_left_out_of_accepted_answers_too() -> None:
    scores = choose(["anls"], NOTHING).score([answered("four", "<think>2 + 2</think>\nfour")])
    assert scores.figures == {"exact_match": 1, "anls": 1}


def test_rows_without_boxes_are_left_out_of_those_figures_alone() -> None:
    hit = {"boxes": (region(0, 0, 9, 9),), "expected_boxes": (region(0, 0, 9, 9),)}
    scorer = choose(["box_f1", "box_map_in_order", "ocr_page"], NOTHING)
    answers = [answered("x", "x", task="read"), answered("[[0, 0, 9, 9]]", "[[0, 0, 9, 9]]", task="find", **hit)]
    scores = scorer.score(answers)
    assert scores.figures["box_f1"] == scores.figures["ocr_box_f1_50"] == 1
    assert scores.figures["box_map_in_order"] == pytest.approx(1)
    assert "box_f1" not in scores.rows[0]
    assert "box_f1" not in scores.groups["task"]["read"]
    assert scores.groups["task"]["find"]["box_map_in_order"] == pytest.approx(1)
    assert "ocr_cer" not in scores.groups["task"]["find"]
    assert not any("box" in name for name in scorer.score(answers[:1]).figures)


def test_odd_texts_go_through_every_metric() -> None:
    odd = ["", " ", "\ud800", "\U0001f600\u0301", "\u200b", "a\0b", "{", "%", "\u202e\u05d0", "x" * 3000, "\n\t"]
    answers = [answered(text, *reversed(odd), boxes=(), expected_boxes=()) for text in odd]
    scores = choose(list(METRICS), NOTHING).score(answers)
    assert set(scores.figures) >= {
        figure for metric in METRICS.values() for figure in metric.figures if "field" not in figure
    }
    assert all(np.isfinite(value) for value in scores.figures.values())
    assert scores.figures["exact_match"] == 1


def test_intervals_are_those_of_a_plain_bootstrap() -> None:
    """Resample by resample with the same row numbers, and each mean by hand."""
    values = [0.0, 0.25, 1.0, 1.0, 0.5, 0.0, 0.75]
    count, combine = mean_of("x", lambda generated, accepted: float(generated))
    counted = count([str(value) for value in values], [[]] * len(values))
    low, high = bootstrap([(counted.sums, combine), (counted.sums, combine)])["x"]
    numbers = np.random.default_rng(20).integers(len(values), size=(1000, len(values)))
    means = [sum(values[number] for number in row) / len(values) for row in numbers]
    assert (low, high) == pytest.approx(tuple(np.percentile(means, (2.5, 97.5))))
    assert low < sum(values) / len(values) < high
    assert bootstrap([(counted.sums[:1], combine)]) == {}
    assert bootstrap([]) == {}


def test_intervals_hold_the_true_mean_as_often_as_they_say() -> None:
    """Of 300 samples of 60 rows each the true mean, 0.3, lies in about 95 % of the intervals."""
    generator = np.random.default_rng(1)
    _, combine = mean_of("x", lambda generated, accepted: 0.0)
    inside = inside_half = 0
    for _ in range(300):
        values = generator.beta(3, 7, size=60)
        low, high = bootstrap([(np.stack([values, np.ones(60)], axis=1), combine)])["x"]
        inside += low <= 0.3 <= high
        inside_half += abs((low + high) / 2 - 0.3) <= (high - low) / 4
    assert 0.89 <= inside / 300 <= 0.98
    assert inside_half / 300 < 0.75, "the control: intervals of half the width hold it less often"


def test_exact_match_has_the_wilson_interval() -> None:
    scores = choose(["exact_match"], NOTHING).score([answered("a", "a"), answered("b", "a"), answered("c", "c")])
    assert scores.intervals["exact_match"] == wilson(2, 3)
    assert wilson(2, 3) == pytest.approx((0.2077, 0.9385), abs=1e-4)
    assert wilson(0, 5)[0] == 0
    assert wilson(5, 5)[1] == 1


def test_many_rows_are_resampled_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    _, combine = mean_of("x", lambda generated, accepted: 0.0)
    sums = np.stack([np.linspace(0, 1, 50), np.ones(50)], axis=1)
    whole = bootstrap([(sums, combine)])
    monkeypatch.setattr("vlm_lora.metrics.intervals._AT_ONCE", 777)
    assert bootstrap([(sums, combine)]) == whole


def test_modules_load_without_a_network_or_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody connects anywhere, and the cache below the home folder is neither needed nor written."""
    import evaluate.config

    def refuse(*_: Any) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", "/proc/nowhere")
    for name, metric in METRICS.items():
        module = loading.load_module(metric.path)
        assert name.replace("_", "") == type(module).__name__.lower()
        assert metric.rule in module.description
    assert evaluate.config.HF_MODULES_CACHE == "/proc/nowhere"
    with pytest.raises(FileNotFoundError, match="nowhere"):  # the control: evaluate itself would write there
        evaluate.load(str(METRICS["anls"].path), cache_dir=str(tmp_path))


@pytest.mark.parametrize("name", METRICS)
def test_evaluate_hands_on_what_rules_count(name: str) -> None:
    """Texts and boxes are the same behind Arrow: a module gives what the rule's own functions give."""
    generator, metric = random.Random(0), METRICS[name]
    parts = ("a", "the cat", "\u732b\U0001f600", "\n", '{"a": [1]}', "", " 5%")
    answers = ["".join(generator.choices(parts, k=2)) for _ in range(60)]
    accepted = [["".join(generator.choices(parts, k=2)) for _ in range(generator.randrange(1, 4))] for _ in answers]
    boxes, expected = ([some_boxes(generator) for _ in answers] for _ in range(2))
    asked = [generator.random() < 0.5 for _ in answers]
    inputs: dict[str, list[Any]] = {"predictions": answers, "references": accepted}
    pairs: tuple[list[Any], list[Any]] = (answers, accepted)
    if metric.inputs == "boxes":
        inputs = {"predictions": boxes, "references": expected}
        pairs = (boxes, expected)
    elif metric.inputs == "page":
        inputs |= {"boxes": boxes, "expected_boxes": expected, "has_boxes": asked}
        given = [found if wants else None for found, wants in zip(boxes, asked, strict=True)]
        pairs = (list(zip(answers, given, strict=True)), list(zip(accepted, expected, strict=True)))
    wanted = metric.whole(*pairs) if metric.whole else None
    if wanted is None:
        assert metric.count is not None
        assert metric.combine is not None
        wanted = {key: float(value) for key, value in metric.combine(metric.count(*pairs).sums.sum(axis=0)).items()}
    assert loading.load_metric(name).compute(**inputs) == wanted
    assert wanted.keys() == metric.figures.keys()


def some_boxes(generator: random.Random) -> list[dict[str, Any]]:
    return [
        {
            "bbox": [0.1, 0.2, 9.3, generator.choice((5.5, 9.25))],
            "label": generator.choice(("", "\u732b")),
            "image_id": 0,
        }
        for _ in range(generator.randrange(3))
    ]


def test_a_module_alone_gives_what_the_scorer_gives() -> None:
    module = loading.load_metric("token_f1")
    assert module.compute(predictions=["a cat", "dog"], references=[["cat"], ["cat", "fox"]]) == {"token_f1": 0.5}
