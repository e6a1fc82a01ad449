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
import torch

from support.rows import write_uneven_rows
from support.runs import logged, run, script_flags
from support.sealed import seal_again
from vlm_lora.cli.main import run_script

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


def go_on(model: Path, data: Path, out: Path, **changes: Any) -> int:
    return run_script(script_flags(model, data, out, **{**FLAGS, "resume_from_checkpoint": "true", **changes}))


def test_all_that_changed_is_named_and_nothing_is_written(
    model_folder: Callable[[str], Path], whole: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(stopped)
    changes = {"learning_rate": 1e-3, "seed": 7, "optim": "sgd", "peft_method": "none", "dtype": "bfloat16"}
    assert go_on(model_folder("gemma3"), whole / "data", stopped, **changes) == 1
    said = capsys.readouterr().err
    assert f"error: --resume_from_checkpoint {stopped / 'checkpoint-2'}: settings differ" in said
    for line in (
        "--learning_rate 0.01 in the checkpoint, 0.001 now\n",
        "--seed 42 in the checkpoint, 7 now\n",
        "sgd now (cannot be allowed)\n",
        "--peft_method lora in the checkpoint, none now (cannot be allowed)\n",
        "--dtype float32 in the checkpoint, bfloat16 now\n",
        "--allow_changed dtype learning_rate seed\n",
    ):
        assert line in said, said
    assert "--lora_rank" not in said, "of which full weights have none"
    assert go_on(model_folder("gemma3"), whole / "data", stopped, allow_changed="lerning_rate") == 1
    assert "Did you mean 'learning_rate'?" in capsys.readouterr().err
    assert contents(stopped) == before


def test_what_is_allowed_is_used_and_so_is_the_cadence(
    model_folder: Callable[[str], Path], whole: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"learning_rate": 4e-2, "weight_decay": 0.5, "allow_changed": '["learning_rate", "weight_decay"]'}
    assert go_on(model_folder("gemma3"), whole / "data", stopped, **changes, save_steps=1) == 0
    assert (
        "--learning_rate 0.04, 0.01 in the checkpoint's run: the linear schedule is now laid over 4 steps: the rate of "
        "step 3 is 0.02 instead of 0.005." in capsys.readouterr().err
    )
    assert logged(stopped, "learning_rate") == pytest.approx([0.01, 0.0075, 0.02, 0.01])
    assert (stopped / "checkpoint-3").is_dir(), "the checkpoint's run saved every two steps"
    group = torch.load(stopped / "checkpoint-4" / "optimizer.pt")["param_groups"][0]
    assert (group["initial_lr"], group["weight_decay"]) == (4e-2, 0.5)
    assert (stopped / ADAPTER).read_bytes() != (whole / "out" / ADAPTER).read_bytes()
    record = json.loads((stopped / "checkpoint-4" / "run.json").read_text(encoding="utf-8"))
    assert record["settings"]["learning_rate"] == 4e-2
    # From there on the new rate is the run's own.
    assert go_on(model_folder("gemma3"), whole / "data", stopped) == 1
    assert "--learning_rate 0.04 in the checkpoint, 0.01 now" in capsys.readouterr().err


def test_the_same_settings_said_otherwise_are_no_change(
    model_folder: Callable[[str], Path],
    whole: Path,
    stopped: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(whole)
    spoken = {"dtype": "float32", "data_seed": 42, "weight_decay": 0, "warmup_ratio": 0.0, "box_format": "xywh"}
    spoken |= {"attn_implementation": "sdpa", "logging_steps": 2, "task_seed": 42}
    assert go_on(Path(os.path.relpath(model_folder("gemma3"))), Path("data"), stopped, **spoken) == 0
    assert " in the checkpoint" not in capsys.readouterr().err
    assert (stopped / ADAPTER).read_bytes() == (whole / "out" / ADAPTER).read_bytes()


def test_more_steps_have_the_rates_of_a_longer_schedule(
    model_folder: Callable[[str], Path], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first of them had the rate that the shorter run ended with: 0."""
    shutil.copytree(whole / "out", tmp_path / "out")
    assert go_on(model_folder("gemma3"), whole / "data", tmp_path / "out", max_steps=6) == 0
    assert logged(tmp_path / "out", "learning_rate")[4:] == pytest.approx([0.01 * 2 / 6, 0.01 / 6])
    assert (
        "--max_steps 6, 4 in the checkpoint's run: the linear schedule is now laid over 6 steps: the rate of step 5 is "
        "0.00333333 instead of 0." in capsys.readouterr().err
    )


def test_a_checkpoint_of_an_earlier_version(
    model_folder: Callable[[str], Path], whole: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no record: the run says so and goes on as it did, with the checkpoint's rate."""
    (stopped / "checkpoint-2" / "run.json").unlink()
    seal_again(stopped / "checkpoint-2")
    typed = {"learning_rate": 1.0, "image_backend": "torchvision"}  # it had pil, and the whole run has not
    assert go_on(model_folder("gemma3"), whole / "data", stopped, **typed) == 0
    assert "checkpoint-2: no record of its run's settings" in capsys.readouterr().err
    assert (stopped / ADAPTER).read_bytes() == (whole / "out" / ADAPTER).read_bytes()


def test_evaluation_alone_compares_nothing(model_folder: Callable[[str], Path], whole: Path, stopped: Path) -> None:
    alone = {"do_train": False, "do_eval": True, "seed": 7, "learning_rate": 1.0, "allow_changed": "nothing"}
    assert go_on(model_folder("gemma3"), whole / "data", stopped, **alone) == 0


def test_images_are_prepared_as_in_the_run_of_the_checkpoint(
    model_folder: Callable[[str], Path], whole: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of an earlier version, whose record says nothing, had pil; Gemma 3's own would be torchvision."""
    model, record = model_folder("gemma3"), stopped / "checkpoint-2" / "run.json"
    assert "image_backend: torchvision\n" in (whole / "out" / "run_config.yaml").read_text(encoding="utf-8")
    kept = json.loads(record.read_text(encoding="utf-8"))
    assert kept["settings"].pop("image_backend") == "torchvision"
    assert go_on(model, whole / "data", stopped, image_backend="pil") == 1
    assert "--image_backend torchvision in the checkpoint, pil now (cannot be allowed)" in capsys.readouterr().err
    record.write_text(json.dumps(kept), encoding="utf-8")
    seal_again(stopped / "checkpoint-2")
    assert go_on(model, whole / "data", stopped, image_backend="torchvision") == 1
    assert "--image_backend pil in the checkpoint, torchvision now (cannot be allowed)" in capsys.readouterr().err
    assert go_on(model, whole / "data", stopped) == 0
    assert "image_backend: pil\n" in (stopped / "run_config.yaml").read_text(encoding="utf-8")
    after = json.loads((stopped / "checkpoint-4" / "run.json").read_text(encoding="utf-8"))
    assert after["settings"]["image_backend"] == "pil"
