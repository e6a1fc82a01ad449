"""`--dry_run` shows what training would see, and trains nothing."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from support.rows import write_uneven_rows
from support.runs import run, script_flags
from vlm_lora.cli.main import main, run_script


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_uneven_rows(tmp_path / "data", rows=4, validation=1)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_rows_are_shown_without_weights_and_nothing_else_is_written(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weightless = tmp_path / "weightless"
    weightless.mkdir()
    for path in model_folder("gemma3").iterdir():
        if path.suffix != ".safetensors":
            (weightless / path.name).write_bytes(path.read_bytes())
    output = tmp_path / "out"
    flags = script_flags(weightless, data, output, do_train=True, deepspeed="zero3", bf16=True)
    assert run_script([*flags, "--dry-run", "--dry-run-samples", "3", "--no-model"]) == 0
    shown = capsys.readouterr().out
    assert [f"train.jsonl row {row} (line {row + 1}): " in shown for row in range(4)] == [True, True, True, False]
    assert "image 1: 32x32 pixels" in shown
    assert "loss" not in shown
    assert files(output) == ["dry_run.html"]
    page = (output / "dry_run.html").read_text(encoding="utf-8")
    assert page.count("<section ") == 3
    assert page.count('src="data:image/') == 3


def test_the_losses_are_those_of_the_evaluation_and_answers_stand_beside_the_expected_ones(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, measured = tmp_path / "out", tmp_path / "eval"
    model = model_folder("qwen2_5_vl")
    engine = {"deepspeed": "zero3", "bf16": False}  # left aside: one process and a few rows
    flags_of_the_run = script_flags(model, data, output, **engine)
    words = ["train", *flags_of_the_run, "--dry_run", "--dry_run_samples", "1", "--dry_run_generate"]
    assert main([*words, "--dry_run_max_new_tokens", "4"]) == 0
    shown = capsys.readouterr().out
    first = json.loads((data / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert f"expected: {first['answer']}" in shown
    assert "answer: " in shown
    found = re.search(r"loss: ([\d.]+)", shown)
    assert found is not None
    one_row = tmp_path / "one.jsonl"
    one_row.write_text(json.dumps({**first, "image": str(data / first["image"])}) + "\n", encoding="utf-8")
    flags = {"do_eval": True, "validation_name": one_row, "image_root": data}
    results = run(model, data, measured, **flags)
    assert float(found[1]) == pytest.approx(results["eval_loss"], abs=6e-5)
    assert files(output) == ["dry_run.html"]


def test_rows_that_drop_leaves_out_are_said_and_a_broken_row_stops_it(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*script_flags(model_folder("gemma3"), data, tmp_path / "out"), "--dry_run", "--no_model"]
    assert run_script([*flags, "--max_length", "5"]) == 1
    assert "train.jsonl row 0 (line 1): " in capsys.readouterr().err
    assert run_script([*flags, "--max_length", "5", "--on_overflow", "drop"]) == 0
    assert "0 rows, nothing was trained" in capsys.readouterr().out
    (data / "train-1.png").write_bytes(b"broken")
    assert run_script(flags) == 1
    assert "train.jsonl row 1 (line 2): " in capsys.readouterr().err


def test_evaluation_does_not_take_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--model_name_or_path", "m", "--dataset_name", "d", "--dry_run"]) == 1
    assert "--dry_run is for train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--no_model"], "--no_model is for --dry_run"),
        (["--dry_run_generate"], "--dry_run_generate is for --dry_run"),
        (["--dry_run", "--no_model", "--dry_run_generate"], "Leave one of them out"),
        (["--dry_run", "--dry_run_samples", "0"], "--dry_run_samples 0: must be"),
        (["--dry_run"], "--output_dir: the folder"),
    ],
)
def test_flags_that_contradict_each_other(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *words]) == 1
    assert message in capsys.readouterr().err
