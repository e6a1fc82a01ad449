"""Head and loss of many rows, a few at a time, so that only these rows' logits are ever alive.

One call of the head's module does all of it: an engine that shards weights gathers them once for that call, however
many chunks a process has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vlm_lora.model.head.after import Change
from vlm_lora.model.head.loss import losses_and_slopes, token_losses
from vlm_lora.model.head.trained import SCALE, TrainedLinear, is_plain_linear

CHUNK_ELEMENTS = 2**25
"""Logits in one chunk: 128 rows of a vocabulary of 262,144, in fp32 128 MiB."""

Logits: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""From hidden states `(N, H)` to logits `(N, V)`."""


def chunk_rows(rows: int, columns: int, elements: int = CHUNK_ELEMENTS) -> int:
    """Return how many rows each chunk has; the last one may have fewer.

    >>> chunk_rows(1200, 262144), chunk_rows(130, 262144), chunk_rows(3, 262144)
    (120, 65, 3)
    """
    chunks = max(1, -(-rows // max(1, elements // columns)))
    return max(1, -(-rows // chunks))


def chunked_losses(
    hidden: torch.Tensor, targets: torch.Tensor, forward: Logits, *, head: nn.Module, after: Change, rows: int
) -> torch.Tensor:
    """Return the loss of each row.

    All chunks but the last of a head that is trained are computed a second time in the backward pass; where it is an
    `nn.Linear`, its weight's gradient is added up in place. A head that is not trained leaves only the gradient of the
    hidden states to be made, and that is made at once, from logits that are there.

    Args:
        hidden: `(N, H)`.
        targets: `(N,)`, `IGNORE_INDEX` where not supervised.
        forward: the head's own.
        head: its module.
        after: what the model does behind it.
        rows: of a chunk.

    Returns:
        `(N,)` in fp32, nats, 0 where ignored.
    """
    pieces, wanted = hidden.split(rows), targets.split(rows)

    def logits(piece: torch.Tensor) -> torch.Tensor:
        return after(forward(piece))

    def losses(piece: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return token_losses(logits(piece), target)

    trained = any(parameter.requires_grad for parameter in head.parameters())
    if torch.is_grad_enabled() and trained and len(pieces) > 1:
        if is_plain_linear(head, forward):
            found: torch.Tensor = TrainedLinear.apply(hidden, head.weight, head.bias, targets, after, rows)
            return found
        draws = any(isinstance(module, nn.Dropout) and module.p for module in head.modules())
        each: list[torch.Tensor] = [
            checkpoint(losses, *pair, use_reentrant=False, preserve_rng_state=draws)
            for pair in zip(pieces[:-1], wanted[:-1], strict=True)
        ]
        # The backward pass begins with the last chunk: what it needs may as well stay.
        return torch.cat([*each, losses(pieces[-1], wanted[-1])])
    if torch.is_grad_enabled() and not trained and hidden.requires_grad:
        made: torch.Tensor = _FrozenHead.apply(hidden, targets, logits, rows)
        return made
    return torch.cat([losses(*pair) for pair in zip(pieces, wanted, strict=True)])


class _FrozenHead(torch.autograd.Function):
    """Losses of rows behind a head without trained weights; their gradient is made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, logits: Logits, rows: int) -> torch.Tensor:
        losses, gradients = [], []
        for piece, target in zip(hidden.split(rows), targets.split(rows), strict=True):
            with torch.enable_grad():
                start = piece.detach().requires_grad_()
                found = logits(start)
            loss, slopes = losses_and_slopes(found, target)
            gradients += torch.autograd.grad(found, start, slopes.mul_(SCALE).to(found.dtype))
            losses.append(loss)
            del found, slopes  # before the next chunk's are made
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *wanted: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * (wanted[0] / SCALE).unsqueeze(1)).to(gradient.dtype), None, None, None
