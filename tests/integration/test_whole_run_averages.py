"""A run that went on: its averages are those of the whole run, next to those since; on ranks that come and go, too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.rows import write_uneven_rows
from support.runs import TORCHRUN, logged, run, run_processes, script_flags
from support.sealed import seal_again
from vlm_lora.compat import IS_5
from vlm_lora.training.checkpoints.so_far import KEY

FLAGS: dict[str, Any] = {
    "do_train": True,
    "max_steps": 6,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "save_strategy": "steps",
    "save_steps": 2,
    # Not each step: what was not logged when a checkpoint was written counts, too.
    "logging_steps": 3,
    "validation_fraction": 0,
    "lora_dropout": 0,
}
RESUMED = {**FLAGS, "resume_from_checkpoint": "true"}


@pytest.fixture(scope="module")
def whole(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` and the run `out` of six steps, two epochs. Copy it before changing it."""
    root = tmp_path_factory.mktemp("whole")
    run(model_folder("gemma3"), write_uneven_rows(root / "data", rows=6), root / "out", **FLAGS)
    return root


def stopped(whole: Path, out: Path, step: int) -> Path:
    """Copy the run as if it had been killed after so many steps."""
    shutil.copytree(whole / "out", out)
    for later in range(step + 2, 7, 2):
        shutil.rmtree(out / f"checkpoint-{later}")
    for name in ("adapter_model.safetensors", "train_results.json", "all_results.json"):
        (out / name).unlink()
    return out


def kept(checkpoint: Path) -> dict[str, float]:
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    sums: dict[str, float] = state["stateful_callbacks"][KEY]["attributes"]
    return sums


def test_averages_are_those_of_the_whole_run(whole: Path, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    undisturbed = json.loads((whole / "out" / "all_results.json").read_text(encoding="utf-8"))
    assert not [name for name in undisturbed if "resume" in name]
    out = stopped(whole, tmp_path / "out", 2)
    # Twice: the sums of a run that went on before are carried on.
    run(model_folder("gemma3"), whole / "data", out, **RESUMED, save_total_limit=3)
    for name in ("all_results.json", "train_results.json", "adapter_model.safetensors"):
        (out / name).unlink()
    shutil.rmtree(out / "checkpoint-6")
    before = kept(out / "checkpoint-4")
    assert before["steps"] == 4
    found = run(model_folder("gemma3"), whole / "data", out, **RESUMED, save_total_limit=3)
    assert found["train_loss"] == pytest.approx(undisturbed["train_loss"], rel=1e-6)
    assert found["train_resumed_at_step"] == 4
    assert found["train_since_resume_loss"] == pytest.approx(
        (6 * undisturbed["train_loss"] - before["loss"]) / 2, rel=1e-5
    )
    assert found["train_since_resume_loss"] != pytest.approx(found["train_loss"], rel=1e-3)
    assert found["train_runtime"] == pytest.approx(before["seconds"] + found["train_since_resume_runtime"], abs=1e-3)
    seconds, since = found["train_runtime"], found["train_since_resume_runtime"]
    assert found["train_steps_per_second"] == pytest.approx(6 / seconds, abs=1e-3)
    assert found["train_samples_per_second"] == pytest.approx(12 / seconds, rel=0.02)
    assert found["train_since_resume_samples_per_second"] == pytest.approx(4 / since, rel=0.02)
    assert found["train_data_wait_seconds"] > before["waited"] > 0
    # Killed between the last checkpoint and the results: nothing is left to train, and the figures are there.
    last = kept(out / "checkpoint-6")
    for name in ("all_results.json", "train_results.json"):
        (out / name).unlink()
    again = run(model_folder("gemma3"), whole / "data", out, **RESUMED)
    assert again["train_loss"] == pytest.approx(undisturbed["train_loss"], rel=1e-6)
    assert again["train_runtime"] == pytest.approx(last["seconds"], abs=1e-3)


def test_a_checkpoint_without_sums(
    whole: Path, model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = stopped(whole, tmp_path / "out", 2)
    file = out / "checkpoint-2" / "trainer_state.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    del state["stateful_callbacks"][KEY]
    file.write_text(json.dumps(state), encoding="utf-8")
    seal_again(file.parent)
    found = run(model_folder("gemma3"), whole / "data", out, **RESUMED, log_level="warning")
    assert "checkpoint-2 keeps no sums of its run, as those of earlier versions" in capsys.readouterr().err
    assert found["train_loss"] == found["train_since_resume_loss"]
    assert KEY not in json.loads((out / "checkpoint-6" / "trainer_state.json").read_text("utf-8"))["stateful_callbacks"]


def test_ranks_come_and_go_at_one_global_batch(
    whole: Path, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """2 -> 1 -> 2 ranks, one row each or two, no flag to allow it: the losses are those of one process throughout."""
    # Which order `auto` chooses depends on the rows of a batch; a run that goes on keeps it.
    steps = {**FLAGS, "logging_steps": 1, "train_sampling_strategy": "random"}
    plain, mixed, other = tmp_path / "plain", tmp_path / "mixed", tmp_path / "other"
    alone = run(model_folder("gemma3"), whole / "data", plain, **{**steps, "save_strategy": "no"})

    def two(out: Path, **flags: Any) -> str:
        words = {**steps, "per_device_train_batch_size": 1, "ddp_backend": "gloo", "log_level": "info", **flags}
        return run_processes([*TORCHRUN, *script_flags(model_folder("gemma3"), whole / "data", out, **words)])

    def ended_at(step: int) -> None:
        for name in ("adapter_model.safetensors", "train_results.json", "all_results.json"):
            (mixed / name).unlink()
        for later in range(step + 2, 7, 2):
            shutil.rmtree(mixed / f"checkpoint-{later}")

    two(mixed)
    ended_at(2)
    run(model_folder("gemma3"), whole / "data", mixed, **{**steps, "resume_from_checkpoint": "true"})
    ended_at(4)
    said = two(mixed, resume_from_checkpoint="true")
    assert "processes 1 in the checkpoint, 2 now" in said
    assert "Rows changed" not in said
    assert len(logged(plain, "loss")) == 6
    # Within 1e-6 of each loss, three units of fp32; 4.55 rounds what it logs.
    assert logged(mixed, "loss") == pytest.approx(logged(plain, "loss"), rel=1e-6, abs=0 if IS_5 else 1e-4)
    found = json.loads((mixed / "all_results.json").read_text(encoding="utf-8"))
    assert found["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-6)
    # The control: two rows on each rank are another global batch.
    shutil.copytree(mixed / "checkpoint-2", other / "checkpoint-2")
    refused = script_flags(
        model_folder("gemma3"),
        whole / "data",
        tmp_path / "new",
        **{**steps, "ddp_backend": "gloo", "resume_from_checkpoint": other / "checkpoint-2"},
    )
    with pytest.raises(pytest.fail.Exception) as failed:
        run_processes([*TORCHRUN, *refused])
    said = str(failed.value)
    assert "rows of one step" in said
    # Once, however many ranks there are.
    assert said.count("error: --resume_from_checkpoint") == 1
