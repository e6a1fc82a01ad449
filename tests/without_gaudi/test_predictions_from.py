"""Answers that another program made are scored on the same rows, and written as our own are."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from support.datasets import write_image, write_jsonl
from vlm_lora import configure, evaluate
from vlm_lora.cli.main import main
from vlm_lora.evaluation.answer_files import read_answers
from vlm_lora.report.terminal.words import rounded

WORDS = ("red", "grün", "blue", "")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "a.png", seed=1)
    rows = [
        {"image": "a.png", "question": f"Colour {number}?", "answer": word or "none", "question_id": f"q{number}"}
        for number, word in enumerate(WORDS)
    ]
    return write_jsonl(tmp_path / "test.jsonl", rows)


def scored(
    data: Path, answers: object, capsys: pytest.CaptureFixture[str], *flags: str
) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    """Score answers; return the figures, the lines of predictions.jsonl, and what was said."""
    if isinstance(answers, Mapping | list):
        (data.parent / "made.json").write_text(json.dumps(answers), encoding="utf-8")
    capsys.readouterr()
    words = ["--validation_name", str(data), "--predictions_from", "made.json", "--overwrite_output_dir", *flags]
    assert main(["eval", *words]) == 0
    said = capsys.readouterr()
    figures = json.loads(said.out)
    folder = data.parent / "eval_results" / "made-test"
    assert rounded(json.loads((folder / "eval_results.json").read_text(encoding="utf-8"))) == figures
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return figures, [json.loads(line) for line in lines], said.err


@pytest.mark.parametrize(
    ("answers", "how"),
    [
        ([{"source": f"elsewhere/test.jsonl row {n}", "prediction": w} for n, w in enumerate(WORDS)], "file and row"),
        ([{"row": n, "output": w} for n, w in enumerate(WORDS)], "a row's number"),
        ([{"question_id": f"q{n}", "generated": w} for n, w in enumerate(WORDS)], "the data's column 'question_id'"),
        ({f"q{n}": w for n, w in enumerate(WORDS)}, "each key is the data's column 'question_id'"),
        ([{"prompt": "?", "outputs": [{"text": w}]} for w in WORDS], "as many answers as rows"),
        (list(WORDS), "as many answers as rows"),
    ],
)
def test_the_row_of_each_answer_is_found(
    answers: object, how: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, lines, said = scored(data, answers, capsys)
    assert how in said
    assert figures["eval_exact_match"] == 0.75
    assert figures["eval_answers"] == 4
    assert [line["exact"] for line in lines] == [True, True, True, False]
    assert lines[1]["prompt"] == "Colour 1?"
    assert lines[1]["scores"]["exact_match"] == 1
    assert lines[3]["loss"] is None


def test_rows_and_answers_that_miss_each_other_are_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [{"row": 9, "prediction": "x"}, {"row": 2, "prediction": "blue"}, {"row": 0, "prediction": "blue"}]
    figures, lines, said = scored(data, given, capsys)
    assert (figures["eval_exact_match"], figures["eval_answers"], figures["eval_samples"]) == (0.5, 2, 4)
    assert "Answers without a row, left out: made.json entry 0." in said
    assert f"Rows without an answer, which the scores do not count: 2 of 4: {data} row 1" in said
    assert [line["source"].rpartition(" row ")[2][0] for line in lines] == ["0", "2"]


def test_from_a_program(data: Path) -> None:
    (data.parent / "made.json").write_text(json.dumps(WORDS), encoding="utf-8")
    figures = evaluate(configure(validation_name=data), predictions_from="made.json")
    assert figures["eval_exact_match"] == 0.75


def test_no_model_is_loaded(data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vlm_lora.model.loading", None)
    figures, _, _ = scored(data, list(WORDS), capsys, "--metrics", "exact_match")
    assert figures["eval_samples"] == 4


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (None, "no such file"),
        ([], "holds no answers"),
        ({}, "holds no answers"),
        ([{"row": 1}], "none of them is an answer"),
        ([{"prediction": "a"}], "1 answer that does not say which row it is of, and 4 rows"),
        ([{"row": 1, "prediction": "a"}, {"row": 1, "prediction": "b"}], "entry 0 and made.json entry 1 are both of"),
        ([{"row": 1, "prediction": "a"}, {"prediction": "b"}], "entry 1: has no 'row'"),
        ([{"row": 1, "prediction": {"x": 1}}], "its answer is no text"),
        ([{"question_id": "q9", "prediction": "a"}], "none of its 1 answers is of one of the 4 rows"),
        ([1], "must be an object"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(
    answers: Sequence[object] | Mapping[str, object] | None, said: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if answers is not None:
        (data.parent / "made.json").write_text(json.dumps(answers), encoding="utf-8")
    assert main(["eval", "--validation_name", str(data), "--predictions_from", "made.json"]) == 1
    assert said in capsys.readouterr().err


def test_another_programs_results_are_not_replaced(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scored(data, list(WORDS), capsys)
    (data.parent / "other.json").write_text(json.dumps(list(WORDS)), encoding="utf-8")
    words = ["eval", "--validation_name", str(data), "--predictions_from", "other.json"]
    assert main([*words, "--output_dir", "eval_results/made-test"]) == 1
    assert "holds the evaluation results of" in capsys.readouterr().err
    assert main(["eval", "--predictions_from", "other.json"]) == 1
    assert "the data that the answers are of is missing" in capsys.readouterr().err


def test_a_batch_interfaces_responses(tmp_path: Path) -> None:
    """As the batch interface that OpenAI has and vLLM copies writes them."""
    body = {"choices": [{"message": {"role": "assistant", "content": "zwölf"}}]}
    file = tmp_path / "out.jsonl"
    file.write_text(json.dumps({"custom_id": "r-1", "response": {"status_code": 200, "body": body}}), encoding="utf-8")
    found = read_answers(file)
    assert (found.answer_key, found.row_key) == ("response", "custom_id")
    assert [(answer.name, answer.text) for answer in found.answers] == [("r-1", "zwölf")]


def test_boxes_count_pixels_of_the_stored_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "a.png", seed=1, size=(96, 64))
    objects = {"bbox": [[10, 20, 30, 40]], "category": ["dog"]}
    data = write_jsonl(tmp_path / "test.jsonl", [{"image": "a.png", "objects": objects}] * 2)
    answers = [json.dumps([{"bbox_2d": box, "label": "dog"}]) for box in ([10, 20, 40, 60], [60, 20, 90, 60])]
    figures, lines, _ = scored(data, answers, capsys)
    assert lines[0]["expected_boxes"] == [{"bbox": [10, 20, 40, 60], "label": "dog", "image_id": 0}]
    assert lines[0]["boxes"] == lines[0]["expected_boxes"]
    assert figures["eval_box_f1"] == 0.5


def test_the_data_sets_of_a_mixture_are_told_apart(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"image": "a.png", "question": f"Shape {number}?", "answer": "round"} for number in range(4)]
    write_jsonl(data.with_name("more.jsonl"), rows)
    (data.parent / "made.json").write_text(json.dumps(["round", "red"]), encoding="utf-8")
    words = ["--dataset_name", f"{data.rename(data.with_name('first.jsonl'))} + {data.with_name('more.jsonl')}"]
    assert main(["eval", *words, "--validation_fraction", "0.25", "--predictions_from", "made.json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert len(figures["eval_by_source"]) == figures["eval_answers"] == 2
    (file,) = (data.parent / "eval_results").rglob("predictions.jsonl")
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert {line["origin"] for line in lines} == set(figures["eval_by_source"])
