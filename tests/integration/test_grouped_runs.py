"""Whole runs with rows grouped by length: said, resumed bitwise, taken over from checkpoints, and refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.datasets import write_jsonl
from support.rows import WORDS
from support.runs import capture_trainer, logged, run, script_flags
from support.sealed import seal_again
from vlm_lora.cli.main import run_script
from vlm_lora.compat import IS_5

ADAPTER = "adapter_model.safetensors"
RECORD = "run.json"
SETTING = "train_sampling_strategy"
FLAGS: dict[str, Any] = {
    "do_train": True,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "lora_dropout": 0.1,
    "lora_rank": 4,
    "static_shapes": False,
    "validation_fraction": 0,
    "save_strategy": "steps",
    "save_steps": 5,
}
GROUPED = {"group_by_length": True}
RANDOM = {"group_by_length": False}


def write_long_and_short(path: Path, rows: int) -> Path:
    generator = np.random.default_rng(0)
    lines = [
        {"question": " ".join(generator.choice(WORDS, 1 + (row % 4) ** 3)), "answer": f"{WORDS[row % 10]} {row}"}
        for row in range(rows)
    ]
    return write_jsonl(path, lines)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen rows: three steps of four and one of three rows an epoch."""
    return write_long_and_short(tmp_path_factory.mktemp("rows") / "train.jsonl", 15)


@pytest.fixture(scope="module")
def whole(model_folder: Callable[[str], Path], data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of eight steps that nobody asked to group; its checkpoint is from inside the second epoch."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run(model_folder("gemma3"), data, out, **FLAGS)
    return out


def losses_from(checkpoint: Path, model: Path, data: Path, out: Path, **flags: Any) -> list[float]:
    run(model, data, out, **{**FLAGS, "resume_from_checkpoint": checkpoint, **flags})
    return logged(out, "loss")


def test_lengths_group_the_rows_and_the_checkpoint_says_so(
    model_folder: Callable[[str], Path],
    data: Path,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = json.loads((whole / "checkpoint-5" / RECORD).read_text(encoding="utf-8"))
    assert record["settings"][SETTING] == "group_by_length"
    trainers = capture_trainer(monkeypatch)
    run(model_folder("gemma3"), data, tmp_path / "asked", **{**FLAGS, **GROUPED, "log_level": "info"})
    assert logged(tmp_path / "asked", "loss") == logged(whole, "loss")
    assert "Rows of like length share a batch: " in capsys.readouterr().err
    run(model_folder("gemma3"), data, tmp_path / "random", **{**FLAGS, **RANDOM, "log_level": "info"})
    assert logged(tmp_path / "random", "loss") != logged(whole, "loss"), "the control"
    assert "share a batch" not in capsys.readouterr().err
    shapes = [{batch["input_ids"].shape[1] for batch in trainer.get_train_dataloader()} for trainer in trainers]
    assert min(shapes[0]) < min(shapes[1]) or len(shapes[0]) > len(shapes[1]), "short rows are in batches of their own"


def test_the_wait_for_data_is_logged_with_each_step(whole: Path) -> None:
    shares = logged(whole, "data_wait")
    assert len(shares) == len(logged(whole, "loss")) == 8
    assert all(0 < share < 1 for share in shares)
    results = json.loads((whole / "all_results.json").read_text(encoding="utf-8"))
    assert 0 < results["train_data_wait_seconds"] < results["train_runtime"]


def test_a_run_resumed_inside_an_epoch_equals_the_whole_one(
    model_folder: Callable[[str], Path], data: Path, whole: Path, tmp_path: Path
) -> None:
    model, checkpoint = model_folder("gemma3"), whole / "checkpoint-5"
    assert losses_from(checkpoint, model, data, tmp_path / "resumed") == logged(whole, "loss")
    assert (tmp_path / "resumed" / ADAPTER).read_bytes() == (whole / ADAPTER).read_bytes()
    # The control, and what an earlier version's checkpoint means: it knew no such setting, so its order was random.
    old = tmp_path / "old" / "checkpoint-5"
    shutil.copytree(checkpoint, old)
    record = json.loads((old / RECORD).read_text(encoding="utf-8"))
    del record["settings"][SETTING]
    (old / RECORD).write_text(json.dumps(record), encoding="utf-8")
    seal_again(old)
    other = losses_from(old, model, data, tmp_path / "random")
    assert other[:5] == logged(whole, "loss")[:5]
    assert other[5:] != logged(whole, "loss")[5:]
    last = json.loads((tmp_path / "random" / "trainer_state.json").read_text(encoding="utf-8"))
    assert last["global_step"] == 8, "as many steps"


def test_a_run_with_a_worker_resumed_before_an_epochs_end_equals_the_whole_one(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    model = model_folder("gemma3")
    for persistent in (False, True):
        flags = {"dataloader_num_workers": 1, "dataloader_persistent_workers": persistent, "save_steps": 2}
        out = tmp_path / f"whole-{persistent}"
        run(model, data, out, **{**FLAGS, **flags})
        resumed = losses_from(out / "checkpoint-2", model, data, tmp_path / f"resumed-{persistent}", **flags)
        # The control is why workers do not outlive an epoch by default: the second one has other dropout then.
        assert (resumed == logged(out, "loss")) is not persistent


def test_another_order_is_refused_unless_it_is_allowed(
    model_folder: Callable[[str], Path], data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {**FLAGS, **RANDOM, "resume_from_checkpoint": whole / "checkpoint-5"}
    assert run_script(script_flags(model_folder("gemma3"), data, tmp_path / "out", **flags)) == 1
    said = capsys.readouterr().err
    assert f"--{SETTING} group_by_length in the checkpoint, random now" in said
    assert f"--allow_changed {SETTING}" in said
    allowed = {**RANDOM, "allow_changed": SETTING}
    other = losses_from(whole / "checkpoint-5", model_folder("gemma3"), data, tmp_path / "out", **allowed)
    assert other[5:] != logged(whole, "loss")[5:]


def test_rows_in_their_own_order(
    model_folder: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = {**FLAGS, SETTING: "sequential", "num_train_epochs": 1}
    if not IS_5:  # transformers 4.55 has a switch for random and grouped alone
        assert run_script(script_flags(model_folder("gemma3"), data, tmp_path / "out", **flags)) == 1
        assert f"--{SETTING} sequential" in capsys.readouterr().err
        return
    trainers = capture_trainer(monkeypatch)
    run(model_folder("gemma3"), data, tmp_path / "out", **flags)
    assert list(trainers[0]._get_train_sampler())[:15] == list(range(15))


def test_a_stream_is_not_grouped(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {**FLAGS, **GROUPED, "streaming": True, "max_steps": 2}
    assert run_script(script_flags(model_folder("gemma3"), data, tmp_path / "out", **flags)) == 1
    said = capsys.readouterr().err
    assert "group_by_length does not go with --streaming true" in said
    assert "random" in said
