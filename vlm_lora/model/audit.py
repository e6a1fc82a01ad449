"""Proof that what should train does: a table before the first step, a check of the gradients at it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from vlm_lora.errors import ModelError
from vlm_lora.model.families import Family
from vlm_lora.model.parts import PARTS, Parts, base_of, count_parameters, find_parts

logger = logging.getLogger(__name__)


def describe_trainable(model: nn.Module, parts: Parts, rates: Mapping[str, float] | None = None) -> str:
    """Return a table of trainable and all parameters per part, one line each and a total.

    Args:
        model: with or without PEFT around it.
        parts: from `find_parts`.
        rates: learning rate by part, for a further column on the parts that train.
    """
    counts = count_parameters(model, parts)
    rows: list[tuple[str, int, int]] = [(part, *counts[part]) for part in PARTS if counts[part][1]]
    rows.append(("total", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    lines = [f"{'part':<12}{'trainable':>16}{'all':>18}{'share':>10}" + (f"{'rate':>12}" if rates else "")]
    for part, trainable, total in rows:
        rate = f"{rates[part]:>12.3g}" if rates and trainable and part in rates else ""
        lines.append(f"{part:<12}{trainable:>16,}{total:>18,}{trainable / max(total, 1):>10.3%}{rate}")
    return "\n".join(lines)


def log_trainable(model: nn.Module, parts: Parts, rates: Mapping[str, float] | None = None, *, below: str = "") -> None:
    """Log the table of `describe_trainable`, and a line `below` it."""
    table = describe_trainable(model, parts, rates)
    logger.info("Trainable parameters:\n%s", f"{table}\n{below}" if below else table)


class GradientAudit(TrainerCallback):
    """Stops training when a trainable tensor gets no gradient, or a frozen one gets one.

    A gradient counts when it exists: LoRA's A matrix rightly has a zero gradient in the first step,
    because B starts at zero. Parts that only images reach are checked at the first step that saw one.
    Hooks on the tensors see gradients also where a wrapper takes them away after the backward pass
    (ZeRO); they are removed once everything has been checked.
    """

    def __init__(self, model: nn.Module, family: Family | None = None) -> None:
        self._parts = find_parts(model, family)
        self._model = model
        self._handles: list[Any] = []
        self._reached: set[str] = set()
        self._pending: set[str] = set()
        self._saw_image = False
        self._first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start to listen, on the tensors as the wrapped model has them."""
        self._first_step = state.global_step
        self.start(kwargs.get("model"))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check after the last backward pass before an optimizer step."""
        self.check()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say what was never checked, and stop listening."""
        if self._pending and state.global_step > self._first_step:
            logger.warning(
                "No training batch held an image, so %d trainable tensors of the vision path never trained.",
                len(self._pending),
            )
        self.stop()

    def start(self, model: nn.Module | None = None) -> None:
        """Listen for gradients of `model` (by default the one given at the beginning)."""
        self.stop()
        if model is not None:
            self._model = model
        self._reached, self._saw_image = set(), False
        self._pending = {name for name, p in self._model.named_parameters() if p.requires_grad}
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad:
                self._handles.append(parameter.register_hook(self._note(name)))
        base = base_of(self._model)
        for path in self._parts.vision:
            self._handles.append(base.get_submodule(path).register_forward_pre_hook(self._see_image))

    def stop(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def check(self) -> None:
        """Compare what got a gradient since `start` with what should have.

        Raises:
            ModelError: a trainable tensor was not reached, or a frozen one has a gradient.
        """
        if not self._handles:
            return
        stray = [n for n, p in self._model.named_parameters() if not p.requires_grad and p.grad is not None]
        if stray:
            raise ModelError(
                f"{len(stray)} frozen tensors got a gradient, {stray[0]} first: something unfroze and froze them "
                "again between the backward pass and the step. Please report the model and the versions."
            )
        # FSDP puts gradients onto its shards without running hooks.
        self._reached |= {n for n, p in self._model.named_parameters() if p.requires_grad and p.grad is not None}
        due = {
            name
            for name in self._pending
            if self._saw_image or not self._parts.needs_image(name)
            # An expert that no token was sent to has no gradient in that step.
            if ".experts." not in name
        }
        missed = sorted(due - self._reached)
        if missed:
            raise ModelError(self._message(missed))
        self._pending -= due | self._reached
        if self._saw_image:
            self._pending.clear()
            logger.info("Gradient audit: all %d trainable tensors got a gradient.", len(self._reached))
            self.stop()

    def _note(self, name: str) -> Callable[[torch.Tensor], None]:
        def note(gradient: torch.Tensor) -> None:
            self._reached.add(name)

        return note

    def note_image(self) -> None:
        """Take note that the model is called on an image; where features are kept its tower is not run for it."""
        if self._model.training:
            self._saw_image = True

    def _see_image(self, module: nn.Module, args: Any) -> None:
        self.note_image()

    def _message(self, missed: list[str]) -> str:
        parts = sorted({self._parts.part_of(name) for name in missed})
        shown = ", ".join(missed[:3]) + (", ..." if len(missed) > 3 else "")
        return (
            f"{len(missed)} trainable tensors of the {' and '.join(parts)} part got no gradient in the first step: "
            f"{shown}. They would stay as they are. Leave them out of --lora_targets"
            f"{' (for example --lora_targets language)' if parts != ['language'] else ''}, or freeze that part."
        )
