"""A trained linear head: its losses, and the gradient of its weight added up in one buffer.

Left to autograd, each chunk's gradient of the weight, as large as the weight itself, would be made in memory of its own
and then added to that of the chunks before it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from vlm_lora.model.head.after import Change
from vlm_lora.model.head.loss import losses_and_slopes, token_losses

SCALE = 1024.0
"""In fp16, slopes of single tokens are too small for their numbers; a power of two changes no other ones."""


def is_plain_linear(head: nn.Module, forward: Callable[..., Any]) -> TypeGuard[nn.Linear]:
    """Return whether a head does what `nn.Linear` does and no more, so that its weight may be read.

    Args:
        head: the module; an engine may have changed its class to one of its own that inherits from `nn.Linear`.
        forward: its own forward. One that an adapter or a quantizer wrote does more.
    """
    return isinstance(head, nn.Linear) and getattr(forward, "__func__", None) is nn.Linear.forward


class TrainedLinear(torch.autograd.Function):
    """Losses of rows behind a linear head with a trained weight.

    The weight is an input like any other, so whatever gathers, reduces or unscales gradients finds it as it always
    does. The backward pass begins with the last chunk and makes all other ones' logits a second time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        after: Change,
        rows: int,
    ) -> torch.Tensor:
        """Return the losses `(N,)`, fp32, of hidden states `(N, H)`, `rows` of them at a time."""
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        ctx.dtype = torch.get_autocast_dtype(device) if autocast else None
        ctx.after, ctx.rows = after, rows
        ctx.save_for_backward(hidden, weight, bias, targets)
        with _as_they_are(hidden):
            inputs, *linear = _cast(ctx.dtype, hidden, weight, bias)
            *pieces, last = zip(inputs.split(rows), targets.split(rows), strict=True)
            losses = [token_losses(after(functional.linear(piece, *linear)), target) for piece, target in pieces]
            loss, ctx.kept = _losses_and_slopes(functional.linear(last[0], *linear), last[1], after, SCALE)
        return torch.cat([*losses, loss])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, wanted: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of hidden states, weight and bias for those of the losses."""
        hidden, weight, bias, targets = ctx.saved_tensors
        needed = ctx.needs_input_grad
        # Not in use behind this: the last chunk's slopes would be there besides another chunk's logits.
        kept, ctx.kept = ctx.kept, None
        total = _Total(weight)
        gradients: list[torch.Tensor] = []
        bias_gradient = None if bias is None else torch.zeros_like(bias)
        with _as_they_are(hidden):
            inputs, *linear = _cast(ctx.dtype, hidden, weight, bias)
            chunks = zip(inputs.split(ctx.rows), targets.split(ctx.rows), wanted.split(ctx.rows), strict=True)
            for piece, target, factor in reversed(list(chunks)):
                if kept is None:
                    logits = functional.linear(piece, *linear)
                    _, slopes = _losses_and_slopes(logits, target, ctx.after, factor.unsqueeze(1))
                    del logits
                else:
                    slopes, kept = kept.mul_((factor / SCALE).unsqueeze(1)), None
                slopes = slopes.to(piece.dtype)
                if needed[0]:
                    gradients.append(slopes @ linear[0])
                if needed[1]:
                    total.add(slopes, piece)
                if bias_gradient is not None:
                    bias_gradient += slopes.sum(dim=0)
                del slopes  # before the next chunk's are made
        found = torch.cat(gradients[::-1]).to(hidden.dtype) if needed[0] else None
        return found, total.sum, bias_gradient if needed[2] else None, None, None, None


class _Total:
    """The gradient of a weight `(V, H)`, in its dtype."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.sum: torch.Tensor | None = None
        self._dtype = weight.dtype

    def add(self, slopes: torch.Tensor, inputs: torch.Tensor) -> None:
        """Add the part of slopes `(N, V)` and inputs `(N, H)`, both of one dtype."""
        if self.sum is None:
            self.sum = (slopes.t() @ inputs).to(self._dtype)
        elif self.sum.dtype == slopes.dtype:
            self.sum.addmm_(slopes.t(), inputs)
        else:
            self.sum.add_(slopes.t() @ inputs)


def _losses_and_slopes(
    logits: torch.Tensor, targets: torch.Tensor, after: Change, factor: torch.Tensor | float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the losses `(N,)` and, `factor` times, their derivatives `(N, V)` by the logits as the head makes them."""
    with torch.enable_grad():
        start = logits.detach().requires_grad_()
        found = after(start)
    losses, slopes = losses_and_slopes(found.detach(), targets)
    slopes.mul_(factor)
    if found is not start:
        (slopes,) = torch.autograd.grad(found, start, slopes.to(found.dtype))
    return losses, slopes


def _cast(dtype: torch.dtype | None, *tensors: torch.Tensor | None) -> list[Any]:
    """Return tensors in the dtype that autocast gives a linear layer's inputs, or as they are without it."""
    return [tensor if tensor is None or dtype is None else tensor.to(dtype) for tensor in tensors]


def _as_they_are(hidden: torch.Tensor) -> AbstractContextManager[None]:
    """Return a context in which nothing is cast: autocast keeps what it casts, and forgets its own in backward."""
    return torch.autocast(hidden.device.type, enabled=False)
