"""`--on_nonfinite skip_step`: a step that is not finite leaves everything as it was, and is counted."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support.poison import poison_gradient, poison_losses, scale_losses, undo_steps
from support.rows import write_uneven_rows
from support.runs import run, script_flags
from vlm_lora.cli.main import run_script

ADAPTER = "adapter_model.safetensors"
STEPS = {"do_train": True, "max_steps": 5, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
SAVES = {"save_strategy": "steps", "save_steps": 1}
SKIPS = {"on_nonfinite": "skip_step"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_uneven_rows(tmp_path_factory.mktemp("skipped") / "data", rows=6)


@pytest.fixture(scope="module")
def runs(
    model_folder: Callable[[str], Path], data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Path]:
    """Folders of three runs: with two bad steps skipped, with the same two undone by other means, and undisturbed.

    Bad are the loss of the first step's second micro-batch, which is before there is an optimizer's state, and a
    gradient of the third.
    """
    folder = tmp_path_factory.mktemp("runs")
    model = model_folder("gemma3")
    with pytest.MonkeyPatch.context() as patch:
        poison_losses(patch, batch=2, row=0, value=math.nan)
        poison_gradient(patch, step=3, name="layers.1.mlp.up_proj.lora_B")
        run(model, data, folder / "skipped", **STEPS, **SAVES, **SKIPS, logging_steps=2)
    with pytest.MonkeyPatch.context() as patch:
        undo_steps(patch, (1, 3))
        run(model, data, folder / "undone", **STEPS, **SAVES)
    run(model, data, folder / "plain", **STEPS, **SAVES)
    return {name: folder / name for name in ("skipped", "undone", "plain")}


def equal(one: Any, other: Any) -> bool:
    """Whether two states hold the same, bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def state_of(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's weights, optimizer and schedule."""
    optimizer = torch.load(folder / "optimizer.pt", weights_only=True)
    schedule = torch.load(folder / "scheduler.pt", weights_only=True)
    schedule.pop("_step_count", None)  # of calls, of which no rate is made
    return {"weights": load_file(folder / ADAPTER), "optimizer": optimizer, "schedule": schedule}


def log_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "trainer_state.json").read_text(encoding="utf-8")
    log: list[dict[str, Any]] = json.loads(text, parse_constant=refuse)["log_history"]
    return log


def refuse(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")


@pytest.mark.parametrize("step", range(1, 6))
def test_skipped_steps_leave_all_as_it_was(step: int, runs: Mapping[str, Path]) -> None:
    skipped, undone, plain = (state_of(folder / f"checkpoint-{step}") for folder in runs.values())
    assert equal(skipped, undone)
    for part in skipped:
        assert not equal(skipped[part], plain[part]), "an update that was made is seen"


def test_they_are_counted_and_are_in_no_average(runs: Mapping[str, Path]) -> None:
    results = json.loads((runs["skipped"] / "all_results.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert results["train_skipped_steps"] == 2
    assert "train_skipped_steps" not in json.loads((runs["plain"] / "all_results.json").read_text(encoding="utf-8"))
    losses = {entry["step"]: entry["loss"] for entry in log_of(runs["undone"]) if "loss" in entry}
    second, fourth = (entry for entry in log_of(runs["skipped"]) if "learning_rate" in entry)
    assert (second["skipped_steps"], fourth["skipped_steps"]) == (1, 2)
    assert second["loss"] == pytest.approx(losses[2], abs=1e-4)
    assert fourth["loss"] == pytest.approx(losses[4], abs=1e-4)
    made = [losses[step] for step in (2, 4, 5)]
    assert results["train_loss"] == pytest.approx(sum(made) / 3, abs=1e-4)
    kept = json.loads((runs["skipped"] / "checkpoint-3" / "trainer_state.json").read_text(encoding="utf-8"))
    assert kept["stateful_callbacks"]["skipped_steps"]["skipped_steps"] == 2


def test_a_resumed_run_counts_on(
    runs: Mapping[str, Path], model_folder: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    """With skipping off by now, which changes nothing of what was."""
    checkpoint = runs["skipped"] / "checkpoint-3"
    results = run(model_folder("gemma3"), data, tmp_path / "out", **STEPS, resume_from_checkpoint=checkpoint)
    assert results["train_skipped_steps"] == 2
    ours, theirs = (load_file(folder / ADAPTER) for folder in (tmp_path / "out", runs["skipped"]))
    assert equal(ours, theirs)


def test_so_many_in_a_row_and_no_more(
    model_folder: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Steps 1, 3 and 4 are bad: of two in a row the second ends the run; the one before is no third."""
    for batch in (1, 3, 4):
        poison_losses(monkeypatch, batch=batch, row=0, value=math.inf)
    flags = {"do_train": True, "max_steps": 5, "per_device_train_batch_size": 1, **SAVES, **SKIPS}
    flags |= {"nonfinite_limit": 1, "log_level": "warning"}
    assert run_script(script_flags(model_folder("gemma3"), data, tmp_path / "out", **flags)) == 1
    said = " ".join(capsys.readouterr().err.split())
    for step, count in ((1, 1), (3, 2)):
        assert re.search(
            rf"Step {step}: the loss is not finite \(inf\)\. The step is skipped, 1 in a row of at most 1, {count} in "
            r"all: weights, optimizer and schedule stay as they are\. Rows whose loss is not finite: \S+ row \d",
            said,
        )
    assert re.search(r"error: Step 4: the loss is not finite \(inf\)\. Rows whose loss is not finite: \S+ row \d", said)
    assert "--on_nonfinite skip_step: 1 in a row were skipped before it (--nonfinite_limit 1)." in said
    first, second, third = (load_file(tmp_path / "out" / f"checkpoint-{step}" / ADAPTER) for step in (1, 2, 3))
    assert equal(second, third)
    assert not equal(first, second)
    assert not (tmp_path / "out" / "checkpoint-4").exists()


def test_weights_that_are_not_finite_end_the_run_at_once(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No step that is skipped would make them better."""
    flags = {**STEPS, **SKIPS, "learning_rate": 1e38, "adam_epsilon": 1e-38}
    assert run_script(script_flags(model_folder("gemma3"), data, tmp_path / "out", **flags)) == 1
    said = capsys.readouterr().err
    assert re.search(r"error: Step \d: .* The weights were not finite before it: ", said)
    assert "is skipped" not in said
    assert not (tmp_path / "out" / ADAPTER).exists()


def test_a_run_that_skips_all_of_its_steps_has_trained_nothing(
    model_folder: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for batch in (1, 2):
        poison_losses(monkeypatch, batch=batch, row=0, value=math.nan)
    flags = {"do_train": True, "max_steps": 2, "per_device_train_batch_size": 1, **SKIPS}
    assert run_script(script_flags(model_folder("gemma3"), data, tmp_path / "out", **flags)) == 1
    assert "Nothing was trained: all of the 2 steps were skipped" in capsys.readouterr().err
    assert not (tmp_path / "out" / ADAPTER).exists()


@pytest.mark.parametrize("policy", ["stop", "skip_step"])
def test_a_scale_of_the_loss_skips_steps_by_its_own_rule(
    policy: str,
    model_folder: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An overflow is its way to find the scale: counted, and no reason to end. A loss that is not finite is."""
    scale_losses(monkeypatch, 1024.0)
    poison_gradient(monkeypatch, step=2, name="layers.1.mlp.up_proj.lora_B")
    flags = {"do_train": True, "max_steps": 4, "per_device_train_batch_size": 1, "on_nonfinite": policy, **SAVES}
    if policy == "skip_step":
        poison_losses(monkeypatch, batch=3, row=0, value=math.nan)
    results = run(model_folder("gemma3"), data, tmp_path / "out", **flags)
    assert results["train_overflow_steps"] == 1
    assert results.get("train_skipped_steps", 0) == (policy == "skip_step")
    states = [load_file(tmp_path / "out" / f"checkpoint-{step}" / ADAPTER) for step in (1, 2, 3, 4)]
    assert equal(states[0], states[1])
    assert equal(states[1], states[2]) == (policy == "skip_step")
    assert not equal(states[2], states[3])
    assert math.isfinite(results["train_loss"])
