"""Rows that are too long, in a run: left out before it, or named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from support.rows import write_uneven_rows, write_varied_rows
from support.runs import run, script_flags
from vlm_lora import pipeline
from vlm_lora.cli.main import main, run_script
from vlm_lora.config.sources import parse

ROWS = 8
LONG = {2, 5}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = write_uneven_rows(tmp_path / "data", rows=ROWS, validation=2)
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in LONG:
        lines[row]["question"] = "so many words " * 40
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def test_rows_that_are_too_long_are_left_out_and_listed(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    flags = {"do_train": True, "do_eval": True, "num_train_epochs": 1, "per_device_train_batch_size": 1}
    results = run(model_folder("gemma3"), data, output, **flags, max_length=100, on_overflow="drop")
    assert results["train_samples"] == ROWS - len(LONG)
    assert results["eval_samples"] == 2
    state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == ROWS - len(LONG)
    listed = json.loads((output / "overlong_rows.json").read_text(encoding="utf-8"))
    assert {entry["position"] for entry in listed["train"]} == LONG
    assert listed["train"][0]["row"].endswith("train.jsonl row 2")
    assert "limit of 100" in listed["train"][0]["reason"]
    assert listed["validation"] == []


def test_without_a_policy_the_row_is_named_with_what_to_type(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = script_flags(model_folder("gemma3"), data, tmp_path / "out", do_train=True, max_length=100)
    assert run_script([*flags, "--max_train_samples", "3", "--num_train_epochs", "1"]) == 1
    message = capsys.readouterr().err
    assert "train.jsonl row 2 (line 3): " in message
    assert "--on_overflow shrink_images" in message


def test_where_no_row_is_left_the_split_is_named(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = script_flags(model_folder("gemma3"), data, tmp_path / "out", do_train=True, max_length=5)
    assert run_script([*flags, "--on_overflow", "drop"]) == 1
    assert f"all {ROWS} rows of 'train' are too long" in capsys.readouterr().err


def test_check_and_training_come_to_one_verdict(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["check", "--model_name_or_path", str(model_folder("gemma3")), "--dataset_name", str(data), "--use_cpu"]
    assert main([*words, "--on_overflow", "drop", "--max_length", "5"]) == 1
    assert f"all {ROWS} rows of 'train' are too long (the report lists them)" in capsys.readouterr().err
    assert main([*words, "--on_overflow", "drop", "--max_length", "100"]) == 0, "some rows are left"


def test_the_memory_plan_leaves_them_out_too(
    model_folder: Callable[[str], Path], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "--model_name_or_path", str(model_folder("gemma3")), "--dataset_name", str(data), "--use_cpu"]
    limits = ["--max_length", "100", "--device", "H100-80", "--json"]
    assert main([*words, *limits]) == 1
    assert "row 2 (line 3): " in capsys.readouterr().err
    assert main([*words, *limits, "--on_overflow", "drop"]) == 0


@pytest.mark.parametrize("static", [False, True])
def test_images_shrink_in_the_run_and_in_the_plan_of_its_shapes(
    static: bool, model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_varied_rows(tmp_path / "data", rows=ROWS, validation=2)
    model = model_folder("qwen2_5_vl")
    words = ["--model_name_or_path", str(model), "--dataset_name", str(data), "--use_cpu"]
    lengths = [len(one.row.input_ids) for one in pipeline.preview(parse(words, environ={}), rows=ROWS).rows]
    limit = max(lengths) - 3
    flags = {"do_train": True, "do_eval": True, "num_train_epochs": 1, "static_shapes": static, "max_length": limit}
    assert run_script(script_flags(model, data, tmp_path / "stopped", **flags)) == 1
    assert f"limit of {limit}" in capsys.readouterr().err
    output = tmp_path / "out"
    results = run(model, data, output, **flags, on_overflow="shrink_images")
    assert results["train_samples"] == ROWS
    if static:
        plan = json.loads((output / "shape_plan.json").read_text(encoding="utf-8"))["plan"]
        assert max(shape["length"] for shape in plan["shapes"]) <= limit
