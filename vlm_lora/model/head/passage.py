"""How losses that are made inside of a model's head come out of the model, whatever its code does behind the head.

The model's output must depend on them, for engines put their hooks there; but code behind the head caps, divides or
rounds what it takes for logits. So what goes through the model is a stand-in, and the losses, and later their
gradient, go past it.
"""

from __future__ import annotations

from typing import Any

import torch

from vlm_lora.errors import ModelError

STAND_IN = 64.0
"""The value that goes through the model in place of logits: what comes out tells what the model's code did to it."""


class Passage:
    """Past one forward and one backward pass of a model."""

    def __init__(self) -> None:
        self._losses: torch.Tensor | None = None
        self._gradient: torch.Tensor | None = None

    def enter(self, losses: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Take losses `(B, K)`; return what the head returns, `(B, K, 1)` of that dtype."""
        stand_in: torch.Tensor = _Enter.apply(losses, dtype, self)
        return stand_in

    def leave(self, output: torch.Tensor) -> torch.Tensor:
        """Return the losses `(B, K)` for what the model made of the stand-in."""
        losses: torch.Tensor = _Leave.apply(output, self)
        return losses


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, losses: torch.Tensor, dtype: torch.dtype, passage: Passage) -> torch.Tensor:
        ctx.passage, passage._losses = passage, losses.detach()
        return torch.full((*losses.shape, 1), STAND_IN, dtype=dtype, device=losses.device)

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient, ctx.passage._gradient = ctx.passage._gradient, None
        if gradient is None:
            raise ModelError("The loss was taken from the model's output, which holds no logits in training.")
        return gradient, None, None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, passage: Passage) -> torch.Tensor:
        ctx.passage, ctx.like = passage, (output.shape, output.dtype, output.device)
        losses, passage._losses = passage._losses, None
        assert losses is not None
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        ctx.passage._gradient = gradients[0]
        shape, dtype, device = ctx.like
        return torch.zeros(shape, dtype=dtype, device=device), None
