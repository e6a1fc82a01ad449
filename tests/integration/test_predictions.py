"""predictions.jsonl: what was asked of each row, with the loss that the evaluation itself measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.datasets import write_chartqa_folder
from support.rows import write_uneven_rows
from support.runs import run
from vlm_lora.evaluation.predictions import PREDICTIONS

KEYS = {"source", "prompt", "images", "generated", "accepted", "exact", "scores", "loss"}


def evaluated(model: Path, data: Path, output: Path, **flags: object) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Evaluate with answers; return the lines of predictions.jsonl, and the results."""
    results = run(model, data, output, do_eval=True, predict_with_generate=True, max_new_tokens=2, **flags)
    lines = (output / PREDICTIONS).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], results


def test_each_line_has_question_image_and_the_rows_own_loss(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model, data = model_folder("qwen2_vl"), write_uneven_rows(tmp_path / "data", rows=1, validation=3)
    lines, _ = evaluated(model, data, tmp_path / "all", per_device_eval_batch_size=2)
    rows = [json.loads(line) for line in (data / "validation.jsonl").read_text(encoding="utf-8").splitlines()]
    for line, row in zip(lines, rows, strict=True):
        assert set(line) == KEYS
        assert (line["prompt"], line["accepted"]) == (row["question"], [row["answer"]])
        assert line["images"] == [str(data / row["image"])]
    _, first = evaluated(model, data, tmp_path / "one", max_eval_samples=1)
    assert lines[0]["loss"] == pytest.approx(first["eval_loss"], rel=1e-5)
    assert lines[1]["loss"] != pytest.approx(first["eval_loss"], rel=1e-3), "the control: another row"


def test_an_image_that_lies_in_the_row_is_named_by_it(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    data = write_chartqa_folder(tmp_path / "charts", train=1, val=2, test=0, seed=1)
    lines, _ = evaluated(model_folder("qwen2_vl"), data, tmp_path / "out")
    file = str(data / "data" / "val-00000-of-00001.parquet")
    assert [line["images"] for line in lines] == [[f"{file}:0#0"], [f"{file}:1#0"]]
    assert lines[0]["source"] == f"{file} row 0"


def test_the_rows_are_those_that_the_run_held_out(
    model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_uneven_rows(tmp_path / "data", rows=6)
    settings = {"validation_fraction": 0.5, "split_seed": 7, "do_train": True, "max_steps": 1}
    trained, after = evaluated(model_folder("qwen2_vl"), data, tmp_path / "out", **settings)
    lines, results = evaluated(tmp_path / "out", data, tmp_path / "again")
    assert [line["source"] for line in lines] == [line["source"] for line in trained]
    assert results["eval_perplexity"] == pytest.approx(after["eval_perplexity"], rel=1e-6)
    _, other = evaluated(tmp_path / "out", data, tmp_path / "typed", split_seed=42)
    assert other["eval_samples"] != after["eval_samples"], "the control: what is typed wins"
    held_out = {int(line["source"].split(" row ")[1][0]) for line in trained}
    rows = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    copies = data / "copies.jsonl"
    copies.write_text("\n".join([*reversed(rows)]) + "\n", encoding="utf-8")
    capsys.readouterr()
    words = {"do_eval": True, "validation_name": copies, "log_level": "warning"}
    run(tmp_path / "out", copies, tmp_path / "copied", **words)
    assert f"was trained on {6 - len(held_out)} of the 6 rows that are evaluated" in capsys.readouterr().err
    copies.write_text("".join(f"{rows[number]}\n" for number in held_out), encoding="utf-8")
    run(tmp_path / "out", copies, tmp_path / "unseen", **words)
    assert "was trained on" not in capsys.readouterr().err, "the control: rows that it was not trained on"
