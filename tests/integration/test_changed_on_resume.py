"""Going on from a checkpoint with other settings: refused by name before anything is written, or really used."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.process import as_it_was
from support.rows import write_uneven_rows
from support.runs import logged, run, script_flags
from vlm_lora.cli import run_script

ADAPTER = "adapter_model.safetensors"
FLAGS: dict[str, Any] = {
    "do_train": True,
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "save_strategy": "steps",
    "save_steps": 2,
    "lora_rank": 4,
    "log_level": "warning",
}


@pytest.fixture(scope="module")
def whole(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` and the run `out` of four steps. Copy it before changing it."""
    root = tmp_path_factory.mktemp("whole")
    data = write_uneven_rows(root / "data", rows=8, validation=2)
    with as_it_was():
        run(model_folder("gemma3"), data, root / "out", **FLAGS)
    return root


@pytest.fixture
def stopped(whole: Path, tmp_path: Path) -> Path:
    """The run as if it had ended after two steps."""
    out = tmp_path / "out"
    shutil.copytree(whole / "out", out)
    shutil.rmtree(out / "checkpoint-4")
    (out / ADAPTER).unlink()
    return out


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def go_on(model: Path, whole: Path, out: Path, **changes: Any) -> int:
    return run_script(script_flags(model, whole / "data", out, **FLAGS, **{"resume_from_checkpoint": "true"} | changes))


def test_all_that_changed_is_named_and_nothing_is_written(
    model_folder: Callable[[str], Path], whole: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(stopped)
    words = script_flags(model_folder("gemma3"), whole / "data", stopped, **FLAGS, resume_from_checkpoint="true")
    for name, value in {"learning_rate": 1e-3, "seed": 7, "optim": "sgd", "lora_targets": "all"}.items():
        words += [f"--{name}", str(value)]
    words = [word for place, word in enumerate(words) if place < 2 or words[place - 1 : place + 1]]
    flags = {**FLAGS, "learning_rate": 1e-3, "seed": 7, "optim": "sgd", "lora_targets": "all", "dtype": "bfloat16"}
    command = script_flags(model_folder("gemma3"), whole / "data", stopped, **flags, resume_from_checkpoint="true")
    assert run_script(command) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: --resume_from_checkpoint {stopped / 'checkpoint-2'}: settings differ")
    for line in (
        "--learning_rate 0.01 in the checkpoint, 0.001 now\n",
        "--seed 42 in the checkpoint, 7 now\n",
        "sgd now (cannot be allowed)\n",
        "--lora_targets language in the checkpoint, all now (cannot be allowed)\n",
        "--dtype float32 in the checkpoint, bfloat16 now\n",
        "--allow_changed dtype learning_rate seed\n",
    ):
        assert line in said, said
    assert contents(stopped) == before
