"""bf16 on the CPU trains to nearly the losses of fp32; what the CPU has not got is one message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.rows import write_uneven_rows
from support.runs import logged, run, script_flags
from vlm_lora.cli.main import run_script

FLAGS = {"do_train": True, "do_eval": True, "max_steps": 6}
RATES = {"lora": 5e-3, "none": 2e-4}
"""High enough to learn; at ten times full weights' Adam turns rounding of tiny gradients into other paths."""


@pytest.mark.parametrize(
    ("method", "name"), [("lora", "gemma3"), ("lora", "qwen2_5_vl"), ("lora", "llava"), ("none", "qwen2_5_vl")]
)
def test_bf16_losses_are_near_those_of_fp32(
    method: str, name: str, model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_uneven_rows(tmp_path / "data", rows=8, validation=2)
    found = {}
    # fp32 first: transformers leaves bf16 behind in ACCELERATE_MIXED_PRECISION for the process's next run.
    for precision in ("false", "true"):
        output = tmp_path / precision
        flags = {**FLAGS, "peft_method": method, "learning_rate": RATES[method], "bf16": precision, "log_level": "info"}
        run(model_folder(name), data, output, **flags)
        found[precision] = logged(output, "loss")
        lines = capsys.readouterr().err.splitlines()
        why, what = [line for line in lines if line.startswith("Precision: ")]
        assert "because --bf16 " in why
        assert ("bf16 autocast" in why) == ("bf16," in what) == (precision == "true")
    assert found["true"] == pytest.approx(found["false"], rel=2e-2)
    assert found["true"] != found["false"], "bf16 was not on"


def test_evaluation_in_bf16(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    data = write_uneven_rows(tmp_path / "data", rows=4, validation=2)
    flags = {"do_eval": True}
    exact = run(model_folder("llava"), data, tmp_path / "exact", **flags)["eval_loss"]
    rounded = run(model_folder("llava"), data, tmp_path / "rounded", **flags, bf16_full_eval=True)["eval_loss"]
    assert rounded == pytest.approx(exact, rel=2e-2)
    assert rounded != exact


@pytest.mark.parametrize("flag", ["fp16", "tf32", "fp16_full_eval"])
def test_one_message(
    flag: str, model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_uneven_rows(tmp_path / "data", rows=2)
    command = script_flags(model_folder("llava"), data, tmp_path / "out", do_train=True, max_steps=1, **{flag: True})
    assert run_script(command) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert f"--{flag} needs a CUDA GPU" in errors[0]
