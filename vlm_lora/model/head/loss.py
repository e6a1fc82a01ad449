"""The negative log-likelihood of single tokens, in fp32."""

from __future__ import annotations

import torch
from torch.nn import functional

from vlm_lora.batching.encoded import IGNORE_INDEX


def gather_targets(labels: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return the token that each supervised position must produce.

    Args:
        labels: `(B, T)` int64, `IGNORE_INDEX` where not supervised.
        positions: `(B, K)` int64 positions whose next token is supervised, padded with -1.

    Returns:
        `(B, K)` int64, `IGNORE_INDEX` where `positions` is padding.
    """
    targets = labels.gather(1, positions.clamp(min=0) + 1)
    return targets.masked_fill(positions < 0, IGNORE_INDEX)


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood in nats of each target, in fp32; 0 where ignored.

    Args:
        logits: `(N, V)`.
        targets: `(N,)`, `IGNORE_INDEX` where not supervised.
    """
    return functional.cross_entropy(logits.float(), targets, ignore_index=IGNORE_INDEX, reduction="none")


def losses_and_slopes(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `token_losses` returns, and the derivative of each loss by its logits, outside of autograd.

    Args:
        logits: `(N, V)`.
        targets: `(N,)`, `IGNORE_INDEX` where not supervised.

    Returns:
        `(N,)` and `(N, V)`, both fp32: `softmax(logits) - one_hot(target)`, 0 where ignored.
    """
    with torch.no_grad():
        logs = logits.float().log_softmax(dim=-1)
        ignored = targets.eq(IGNORE_INDEX)
        places = targets.masked_fill(ignored, 0).unsqueeze(1)
        losses = logs.gather(1, places).squeeze(1).neg().masked_fill(ignored, 0)
        slopes = logs.exp_()
        slopes.scatter_add_(1, places, torch.full_like(places, -1, dtype=slopes.dtype))
        slopes.masked_fill_(ignored.unsqueeze(1), 0)
    return losses, slopes
