"""The loss: next-token negative log-likelihood on supervised positions only, normalised once.

The language-model head is the widest layer of a VLM (262,208 columns in Gemma3) and only the
supervised positions need its output. A forward pre-hook on the head gathers those positions' hidden
states, so the logits are `(B, K, V)` instead of `(B, T, V)`. This is exact: the head works on each
position by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from vlm_lora.batching.encoded import IGNORE_INDEX
from vlm_lora.errors import ModelError


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


class SupervisedHead:
    """Runs a model's head on supervised positions and turns its logits into losses.

    Args:
        model: the model (with or without PEFT around it) whose output embeddings are hooked.

    Raises:
        ModelError: the model has no output embeddings, so there is nothing to hook.
    """

    def __init__(self, model: nn.Module) -> None:
        head = model.get_output_embeddings()  # type: ignore[operator]
        if head is None:
            raise ModelError(f"{type(model).__name__} has no output embeddings: it is not a generative model.")
        self._positions: torch.Tensor | None = None
        self._calls = 0
        head.register_forward_pre_hook(self._gather)

    def _gather(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._positions is None:
            return None
        self._calls += 1
        hidden = args[0]
        index = self._positions.to(hidden.device).clamp(min=0).unsqueeze(-1)
        return (hidden.gather(1, index.expand(-1, -1, hidden.shape[-1])), *args[1:])

    @contextmanager
    def on(self, positions: torch.Tensor) -> Iterator[None]:
        """Within this context the head sees only `positions` `(B, K)`.

        Raises:
            ModelError: the model ran its head not exactly once, so the loss would be of something else.
        """
        self._positions, self._calls = positions, 0
        try:
            yield
        finally:
            self._positions = None
        if self._calls != 1:
            raise ModelError(
                f"The model ran its output embeddings {self._calls} times in one forward pass; the loss on "
                "supervised positions needs exactly one. Please report the model's class."
            )


class ScoredModel(nn.Module):
    """A model with its supervised head as one module: everything that its output depends on is an input.

    Hardware that captures a module's graph and replays it needs that.
    """

    def __init__(self, model: nn.Module, head: SupervisedHead) -> None:
        super().__init__()
        self.model = model
        self._head = head

    def forward(self, inputs: dict[str, Any], targets: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the row sums `(B, 2)` of `row_sums` for targets and positions `(B, K)`."""
        with self._head.on(positions):
            outputs = self.model(**inputs)
        return row_sums(outputs.logits, targets)


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood in nats of each target, in fp32; 0 where ignored.

    Args:
        logits: `(B, K, V)` of the supervised positions.
        targets: `(B, K)` from `gather_targets`.
    """
    if logits.shape[:2] != targets.shape:
        raise ModelError(
            f"Logits of shape {tuple(logits.shape)} for {tuple(targets.shape)} supervised positions: the model "
            "changed the head's input or output. Please report the model's class."
        )
    flat = functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return flat.view_as(targets)


def row_sums(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return `(B, 2)` fp32: each row's summed negative log-likelihood and its number of supervised tokens."""
    tokens = targets.ne(IGNORE_INDEX).sum(dim=1)
    return torch.stack([token_losses(logits, targets).sum(dim=1), tokens.float()], dim=1)
