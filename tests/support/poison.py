"""What makes a run's numbers go wrong at a chosen place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from vlm_lora.model.objective import SupervisedHead
from vlm_lora.training import trainer as _trainer

# Their functions are replaced for the length of a test.
trainer: Any = _trainer


def poison_losses(monkeypatch: pytest.MonkeyPatch, *, batch: int, row: int, value: float) -> None:
    """Add `value` to the token losses of one row of this process's `batch`th training batch, from 1."""
    seen = [0]
    losses = SupervisedHead.losses

    def poisoned(self: SupervisedHead, output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen[0] += torch.is_grad_enabled()  # not in evaluations
        found = losses(self, output, targets)
        if not torch.is_grad_enabled() or seen[0] != batch:
            return found
        factor = torch.zeros_like(found)
        factor[row] = value
        return found + factor * (found * 0 + 1)

    monkeypatch.setattr(SupervisedHead, "losses", poisoned)


def poison_gradient(monkeypatch: pytest.MonkeyPatch, *, step: int, name: str) -> None:
    """Make one gradient of the trained tensor whose name contains `name` infinite at a step; the loss is as ever."""

    def before(model: Any) -> None:
        tensor = next(tensor for found, tensor in model.named_parameters() if name in found)

        def spoil(gradient: torch.Tensor) -> torch.Tensor:
            handle.remove()
            return gradient + torch.inf

        handle = tensor.register_hook(spoil)

    _at_step(monkeypatch, step, before=before)


def poison_weight(monkeypatch: pytest.MonkeyPatch, *, step: int, name: str) -> None:
    """Make one number of the trained tensor whose name contains `name` infinite by the update of a step."""

    def after(model: Any) -> None:
        tensor = next(tensor for found, tensor in model.named_parameters() if name in found)
        tensor.data.view(-1)[0] = torch.inf

    _at_step(monkeypatch, step, after=after)


def undo_steps(monkeypatch: pytest.MonkeyPatch, steps: Collection[int]) -> None:
    """Make updates as ever, and behind these steps put weights, optimizer and schedule back to what they were."""

    class Undo(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            keepers = (kwargs["optimizer"], kwargs["lr_scheduler"])
            self.kept = copy.deepcopy([keeper.state_dict() for keeper in keepers])
            self.weights = [tensor.detach().clone() for tensor in kwargs["model"].parameters()]

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step not in steps:
                return
            kwargs["optimizer"].load_state_dict(self.kept[0])
            kwargs["lr_scheduler"].load_state_dict(self.kept[1])
            for tensor, before in zip(kwargs["model"].parameters(), self.weights, strict=True):
                tensor.data.copy_(before)

    _with_callback(monkeypatch, Undo)


def scale_losses(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """Scale losses as in fp16, which the CPU has not got: gradients are fp32, so what overflows is poison."""
    build = trainer.build_trainer

    def with_scale(*args: Any, **kwargs: Any) -> Any:
        built = build(*args, **kwargs)
        built.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return built

    monkeypatch.setattr("vlm_lora.training.trainer.build_trainer", with_scale)


def _at_step(
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    *,
    before: Callable[[Any], None] | None = None,
    after: Callable[[Any], None] | None = None,
) -> None:
    class Poison(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if before is not None and state.global_step + 1 == step:
                before(kwargs["model"])

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if after is not None and state.global_step + 1 == step:
                after(kwargs["model"])

    _with_callback(monkeypatch, Poison)


def _with_callback(monkeypatch: pytest.MonkeyPatch, kind: type[TrainerCallback]) -> None:
    build = trainer.build_trainer

    def with_callback(*args: Any, **kwargs: Any) -> Any:
        built = build(*args, **kwargs)
        built.add_callback(kind())
        return built

    monkeypatch.setattr("vlm_lora.training.trainer.build_trainer", with_callback)
