"""Runs compared: the paired tests against their definitions, and a page whose numbers are those of the files."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.made_runs import made_images, made_log, make_run, prediction
from vlm_lora.cli.main import main
from vlm_lora.report.comparison.compared import compare_runs, verdict
from vlm_lora.report.comparison.page import render_comparison
from vlm_lora.report.comparison.paired import MCNEMAR, SIGN_FLIPS, compare, mcnemar, sign_flips


def by_listing(higher: int, lower: int) -> float:
    """McNemar's p by its definition: of all ways to share the discordant rows, those at least as uneven."""
    rows = higher + lower
    sums = [sum(ways) for ways in itertools.product((0, 1), repeat=rows)]
    return sum(abs(2 * right - rows) >= abs(higher - lower) for right in sums) / len(sums)


@pytest.mark.parametrize(("higher", "lower"), [(0, 0), (1, 0), (3, 3), (1, 5), (9, 2), (0, 10), (7, 4)])
def test_mcnemar_counts_the_ways(higher: int, lower: int) -> None:
    assert mcnemar(higher, lower) == pytest.approx(by_listing(higher, lower), abs=1e-15)
    assert mcnemar(higher, lower) == mcnemar(lower, higher)


def test_mcnemar_of_very_many_rows_is_a_number() -> None:
    assert 0 < mcnemar(5_000, 5_300) < 0.01
    assert mcnemar(5_000, 5_000) == 1.0


def test_sign_flips_are_those_of_all_signs() -> None:
    differences = np.array([0.3, -0.1, 0.25, 0.4, 0.05, -0.2, 0.35, 0.15, 0.0, 0.0])
    moved = differences[differences != 0]
    sums = [abs(np.dot(signs, moved)) for signs in itertools.product((-1, 1), repeat=len(moved))]
    exact = np.mean([one >= abs(moved.sum()) - 1e-12 for one in sums])
    p = sign_flips(differences, np.random.default_rng(0))
    assert abs(p - exact) < 4 * np.sqrt(exact * (1 - exact) / 10_000)
    assert p == sign_flips(differences, np.random.default_rng(0))


def test_equal_runs_are_rarely_told_apart_and_different_ones_nearly_always() -> None:
    draws = np.random.default_rng(1)
    found: dict[float, int] = {}
    for gain in (0.0, 0.3):
        ps = []
        for seed in range(60):
            first = draws.normal(0.5, 0.4, 60)
            ps.append(compare(list(first), list(first + draws.normal(gain, 0.4, 60)), seed=seed).p)
        found[gain] = sum(p < 0.05 for p in ps)
    assert found[0.0] <= 8, "three are expected"
    assert found[0.3] >= 55


def test_which_test_follows_from_the_scores() -> None:
    ones = compare([1, 0, 0, 0, 1, 0], [1, 1, 1, 1, 1, 1])
    assert (ones.test, ones.higher, ones.lower, ones.p) == (MCNEMAR, 4, 0, 0.125)
    assert (ones.first, ones.second) == (2 / 6, 1.0)
    assert ones.difference == pytest.approx(4 / 6)
    assert ones.interval[0] < 4 / 6 < ones.interval[1] <= 1
    shares = compare([0.5, 0, 1], [0.5, 1, 1])
    assert (shares.test, shares.rows) == (SIGN_FLIPS, 3)
    assert compare([0.5] * 9, [0.5] * 9).p == 1.0
    with pytest.raises(ValueError, match="cannot be paired"):
        compare([1.0], [1.0, 0.0])


def test_the_words_follow_the_direction_of_the_score() -> None:
    better = compare([0.0] * 12, [1.0] * 12)
    assert verdict("exact_match", better) == "better"
    assert verdict("cer", better) == verdict("eval_loss", better) == "worse"
    assert verdict("exact_match", compare([0.0] * 3, [1.0] * 3)) == "no clear difference"


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs on the same rows; the second answers rows 1, 2 and 4 better and row 0 worse, and lacks row 8."""
    images = made_images(tmp_path / "images", 9)
    before = [prediction(number, image) for number, image in enumerate(images)]
    changes: dict[int, dict[str, Any]] = {
        **{n: {"exact": True, "scores": {"anls": 1.0}, "generated": f"answer {n}"} for n in (1, 2, 4)},
        0: {"exact": False, "scores": {"anls": 0.25}, "generated": "<b>worse</b>"},
        5: {"generated": "otherwise"},
    }
    after = [{**row, **changes.get(number, {})} for number, row in enumerate(before)][:8]
    first = make_run(tmp_path / "first", before)
    second = make_run(
        tmp_path / "second",
        after,
        settings={"lora_rank": 16, "packing": True},
        log=made_log(slope=2.0),
        results={"eval_exact_match": 0.75},
    )
    return first, second


def test_two_runs(runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = compare_runs(runs)
    assert comparison.settings == [("lora_rank", ["8", "16"]), ("packing", ["false", "true"])]
    assert ("eval_exact_match", [0.5, 0.75]) in comparison.figures
    [against] = comparison.against
    assert (against.pairs, against.only_first, against.only_second, against.reworded) == (8, 1, 0, 1)
    assert [(row.before.number, row.better) for row in against.changed] == [(1, True), (2, True), (4, True), (0, False)]
    exact = against.scores["exact_match"]
    assert (exact.test, exact.higher, exact.lower, exact.p) == (MCNEMAR, 3, 1, 0.625)
    assert against.scores["anls"].test == SIGN_FLIPS
    assert against.scores["eval_loss"].p == 1.0
    output = tmp_path / "pages" / "both.html"
    assert main(["compare", *map(str, runs), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    for said in ("lora_rank", "3 rows better, 1 worse, 1 answered otherwise but neither", "exact McNemar test"):
        assert said in printed
    text = output.read_text(encoding="utf-8")
    assert float(re.findall(r'data-name="exact_match" data-p="([^"]+)"', text)[0]) == 0.625
    assert re.findall(r'class="card changed-row" data-number="(\d+)"', text) == ["1", "2", "4", "0"]
    assert "<b>worse</b>" not in text
    assert "&lt;b&gt;worse&lt;/b&gt;" in text
    assert text.count("data:image/") == 4
    assert "data:image/" not in render_comparison(comparison, images=False)


def test_defaults_on_record_are_compared_with_what_is_given(runs: tuple[Path, Path]) -> None:
    """A run that names the default does the same as one that leaves it out."""
    for number, run in enumerate(runs):
        settings = {"warmup_steps": 0.0, "packing": False, "seed": 42 + number}
        (run / "run.json").write_text(json.dumps({"settings": settings}), encoding="utf-8")
    assert compare_runs(runs).settings == [
        ("packing", ["false", "true"]),
        ("seed", ["42", "43"]),
        ("lora_rank", ["8", "16"]),
    ]


def test_rows_that_expect_other_answers_are_said(runs: tuple[Path, Path]) -> None:
    path = runs[1] / "predictions.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert "the data are not the same" not in render_comparison(compare_runs(runs))
    lines[3]["accepted"] = ["another"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert "1 of these rows expects different answers" in render_comparison(compare_runs(runs))


def test_an_older_run_without_questions_is_paired_by_its_rows(runs: tuple[Path, Path]) -> None:
    path = runs[0] / "predictions.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    older = [{key: line[key] for key in ("source", "generated", "accepted", "exact")} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in older), encoding="utf-8")
    [against] = compare_runs(runs).against
    assert (against.pairs, list(against.scores)) == (8, ["exact_match"])


def without_predictions(first: Path, second: Path) -> None:
    (second / "predictions.jsonl").unlink()


def without_results(first: Path, second: Path) -> None:
    for name in ("eval_results.json", "all_results.json", "trainer_state.json", "run_config.yaml"):
        (first / name).unlink()
        (second / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(without_predictions, "so nothing can be tested"), (without_results, "None of the runs has results")],
)
def test_what_is_missing_is_said(
    spoil: Callable[[Path, Path], None], said: str, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    assert said not in render_comparison(compare_runs(runs)), "the control"
    spoil(*runs)
    assert said in render_comparison(compare_runs(runs))
    assert main(["compare", *map(str, runs), "--output", str(tmp_path / "page.html")]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{a}"], "name two runs or more"),
        ([], "the following arguments are required: RUN"),
        (["{a}", "{a}/../first"], "is named twice"),
        (["{a}", "{a}/none"], "no such folder"),
        (["{a}", "{b}", "--output", "{a}/run.json"], "is no page of vlm-lora"),
    ],
)
def test_wrong_commands(
    words: list[str], said: str, runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *(word.format(a=runs[0], b=runs[1]) for word in words)]) == 1
    assert said in capsys.readouterr().err


def test_three_runs_of_one_name_are_told_apart(runs: tuple[Path, Path], tmp_path: Path) -> None:
    third = make_run(tmp_path / "other" / "first")
    comparison = compare_runs([*runs, third])
    assert comparison.names == [str(runs[0]), str(runs[1]), str(third)]
    assert [len(chart.lines) for chart, _ in comparison.charts] == [3] * len(comparison.charts)
    assert len(comparison.against) == 2
