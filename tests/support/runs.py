"""Runs of the command line inside the test process, and what they leave behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from support.rows import write_uneven_rows
from support.warm import warmed
from vlm_lora.cli.main import run_script
from vlm_lora.training import trainer

EXAMPLES = Path(__file__).parents[2] / "examples"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "run_lora_vlm.py"]
"""Starts the script of `EXAMPLES` on two processes."""


def script_flags(model: Path, data: Path, output: Path, **flags: object) -> list[str]:
    """Return the flags of a small CPU run; keyword arguments add to or replace them."""
    values: dict[str, object] = {
        "model_name_or_path": model,
        "dataset_name": data,
        "output_dir": output,
        "use_cpu": True,
        "dataloader_num_workers": 0,
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "log_level": "error",
        "report_page": False,  # drawing takes longer than most of these runs
        **flags,
    }
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


def run(model: Path, data: Path, output: Path, **flags: object) -> dict[str, Any]:
    """Run `run_lora_vlm.py` and return its `all_results.json`; any exit code but 0 fails the test."""
    code = run_script(script_flags(model, data, output, **flags))
    if code != 0:
        pytest.fail(f"the command exited with {code}")
    results: dict[str, Any] = json.loads((output / "all_results.json").read_text(encoding="utf-8"))
    return results


def whole_run(root: Path, model: Path, **flags: object) -> Path:
    """Return a folder with `base` (a copy of the model), `data` and the run `out` of them. Copy it to change it."""
    shutil.copytree(model, root / "base")
    write_uneven_rows(root / "data", rows=8, validation=2)
    run(root / "base", root / "data", root / "out", **flags)
    return root


def run_processes(command: Sequence[str], *, cwd: Path = EXAMPLES, cold: bool = False) -> str:
    """Run a launcher with its command and return what they wrote to stderr; any exit code but 0 fails the test.

    Its processes are forked from a warm one (`support.warm`); `cold` is for tests whose point is how they start.
    """
    done = subprocess.run(
        command if cold else warmed(command),
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if done.returncode != 0:
        pytest.fail(f"the command exited with {done.returncode}: {done.stderr}")
    return done.stderr


def results_of(output: Path) -> dict[str, Any]:
    """Return the figures that a run left."""
    found: dict[str, Any] = json.loads((output / "all_results.json").read_text(encoding="utf-8"))
    return found


def logged(output: Path, key: str) -> list[float]:
    """Return what the trainer logged under `key`, step by step."""
    state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
    return [entry[key] for entry in state["log_history"] if key in entry]


def capture_trainer(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that the next runs put their trainer into."""
    trainers: list[Any] = []
    with_trainer(monkeypatch, trainers.append)
    return trainers


def with_callback(monkeypatch: pytest.MonkeyPatch, callback: TrainerCallback) -> None:
    """Give it to the trainers of the next runs."""
    with_trainer(monkeypatch, lambda built: built.add_callback(callback))


def with_trainer(monkeypatch: pytest.MonkeyPatch, use: Callable[[Any], object]) -> None:
    """Let the next runs hand over their trainer as soon as it is built."""
    build = trainer.build_trainer

    def build_and_use(*args: Any, **kwargs: Any) -> Any:
        built = build(*args, **kwargs)
        use(built)
        return built

    monkeypatch.setattr("vlm_lora.training.trainer.build_trainer", build_and_use)
