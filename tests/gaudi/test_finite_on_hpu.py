"""A bad step on the simulated Gaudi: masked there, told when something is logged or saved, whichever is first."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from support.poison import poison_gradient, poison_losses, undo_steps
from support.rows import write_uneven_rows
from support.runs import capture_trainer, logged
from support.stacks import on_hpu
from vlm_lora.cli.main import run_script
from vlm_lora.training import trainer as _trainer

trainer: Any = _trainer


@pytest.fixture
def failing(
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[str, Any, list[int]]]:
    """Return a run's error, its trainer, and the host reads before each step's end."""
    data = write_uneven_rows(tmp_path / "data", rows=8)
    trainers = capture_trainer(monkeypatch)
    reads: list[int] = []

    class Count(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            from hpu_simulator.library import statistics  # only once torch is there

            figures = statistics()
            reads.append(figures.items + figures.copies_to_host + figures.dynamic_shapes)

    def run(**flags: object) -> tuple[str, Any, list[int]]:
        build = trainer.build_trainer

        def with_count(*args: Any, **kwargs: Any) -> Any:
            built = build(*args, **kwargs)
            built.add_callback(Count())
            return built

        monkeypatch.setattr("vlm_lora.training.trainer.build_trainer", with_count)
        settings = {"do_train": True, "max_steps": 6, "bf16": False, "per_device_train_batch_size": 2, **flags}
        assert run_script(on_hpu(model_folder("gemma3"), data, tmp_path / "out", **settings)) == 1
        said = capsys.readouterr().err
        assert "Traceback" not in said
        [line] = [line for line in said.splitlines() if line.startswith("error: ")]
        return line, trainers[-1], reads

    return run


def test_a_gradient_is_told_when_something_is_logged(
    failing: Callable[..., tuple[str, Any, list[int]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_gradient(monkeypatch, step=3, name="layers.1.mlp.up_proj.lora_B")
    said, trainer, reads = failing(logging_steps=5)
    assert trainer.state.global_step == 5
    assert re.search(r"Step 3: the loss is \d+\.\d+, but its gradient is not finite\. The rows of this step: ", said)
    assert len(re.findall(r"train\.jsonl row \d", said)) == 2
    assert re.search(r"The gradient of \S+layers\.1\.mlp\.up_proj\.lora_B\S+ is not finite\.", said)
    assert reads[1:] == reads[1:2] * 4, "nothing was read between the first step's end and the last one's"
    trained = [tensor for tensor in trainer.model.parameters() if tensor.requires_grad]
    assert all(tensor.detach().cpu().isfinite().all() for tensor in trained)
    moments = [state["exp_avg"] for state in trainer.optimizer.state.values()]
    assert all(moment.cpu().isfinite().all() for moment in moments)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_loss_is_told_before_anything_is_saved(
    failing: Callable[..., tuple[str, Any, list[int]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step's, that no log and no save would show."""
    poison_losses(monkeypatch, batch=4, row=1, value=math.nan)
    said, trainer, _ = failing(logging_steps=50, max_steps=4, save_strategy="steps", save_steps=3)
    assert trainer.state.global_step == 4
    assert re.search(
        r"Step 4: the loss is not finite \(nan\)\. Rows whose loss is not finite: \S+train\.jsonl row \d \(line \d\)\.",
        said,
    )
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-3"]
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_a_step_that_is_skipped_leaves_all_as_it_was(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, optimizer and schedule are bitwise those of a run of which the same steps were undone."""
    data = write_uneven_rows(tmp_path / "data", rows=8)
    trainers = capture_trainer(monkeypatch)
    settings: dict[str, object] = {"do_train": True, "max_steps": 4, "bf16": False, "per_device_train_batch_size": 2}

    def trained(name: str, **flags: object) -> Any:
        assert run_script(on_hpu(model_folder("gemma3"), data, tmp_path / name, **settings, **flags)) == 0
        return trainers[-1]

    plain = trained("plain")
    with pytest.MonkeyPatch.context() as patch:
        undo_steps(patch, (1, 3))
        undone = trained("undone")
    poison_losses(monkeypatch, batch=1, row=1, value=math.nan)
    poison_gradient(monkeypatch, step=3, name="layers.1.mlp.up_proj.lora_B")
    skipped = trained("skipped", on_nonfinite="skip_step")
    assert skipped.finite.skipped.total == 2
    assert equal(state_of(skipped), state_of(undone))
    assert not equal(state_of(skipped), state_of(plain)), "an update that was made is seen"
    results = json.loads((tmp_path / "skipped" / "all_results.json").read_text(encoding="utf-8"))
    assert results["train_skipped_steps"] == 2
    losses = logged(tmp_path / "undone", "loss")
    assert logged(tmp_path / "skipped", "loss") == [losses[1], losses[3]]
    assert results["train_loss"] == pytest.approx((losses[1] + losses[3]) / 2, abs=1e-3)


def state_of(trainer: Any) -> list[Any]:
    """Return what a step changes: trained weights, the optimizer's state and the rate of the next step."""
    trained = [tensor.detach().cpu() for tensor in trainer.model.parameters() if tensor.requires_grad]
    moments = [state["exp_avg"].cpu() for state in trainer.optimizer.state.values()]
    return [*trained, *moments, torch.tensor(trainer.lr_scheduler.get_last_lr())]


def equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(one.equal(other) for one, other in zip(ours, theirs, strict=True))
