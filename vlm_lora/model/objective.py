"""The loss: next-token negative log-likelihood on supervised positions only, normalised once.

The language-model head is the widest layer of a VLM (262,208 columns in Gemma3) and only the supervised positions need
its output. So within one call of the head these positions' hidden states are gathered, and logits and losses are made
of a few of them at a time (`head.chunks`). This is exact: the head works on each position by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from vlm_lora.batching.encoded import IGNORE_INDEX
from vlm_lora.errors import ModelError
from vlm_lora.model.families import FAMILIES
from vlm_lora.model.head.after import Change, change_of
from vlm_lora.model.head.chunks import CHUNK_ELEMENTS, chunk_rows, chunked_losses
from vlm_lora.model.head.loss import gather_targets, token_losses
from vlm_lora.model.head.passage import STAND_IN, Passage
from vlm_lora.model.parts import base_of

logger = logging.getLogger(__name__)

__all__ = ["ScoredModel", "SupervisedHead", "gather_targets", "row_sums"]

_REPORT = "Please report the model's class."


@dataclass(kw_only=True)
class _Batch:
    """What one forward pass is of."""

    positions: torch.Tensor
    targets: torch.Tensor
    count: int | None
    calls: int = 0


class SupervisedHead:
    """Runs a model's head and its loss on supervised positions.

    A family outside of the table may do to its logits what is not known; there the head returns the logits of all
    supervised positions, `(B, K, V)`.

    Args:
        model: the model (with or without PEFT around it) whose output embeddings are watched.
        reads: whether values may be read from the device. Where that would cut a graph, or there are none to be read,
            padding among the positions is computed as well, and shapes depend on the batch's shape alone.
        chunk_elements: logits in one chunk.

    Raises:
        ModelError: the model has no output embeddings, so there is nothing to watch.
    """

    def __init__(self, model: nn.Module, *, reads: bool = True, chunk_elements: int = CHUNK_ELEMENTS) -> None:
        head = model.get_output_embeddings()  # type: ignore[operator]
        if head is None:
            raise ModelError(f"{type(model).__name__} has no output embeddings: it is not a generative model.")
        self._head: nn.Module = head
        self._reads = reads
        self._elements = chunk_elements
        self._after = _known_change(base_of(model))
        self._proved = not reads
        self._batch: _Batch | None = None
        self._passage: Passage | None = None
        self._own_forward = head.forward
        # Its chunks are not traced: torch.compile would make one program for each number of them.
        head.forward = torch.compiler.disable(self._forward)

    def _forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Stand in for the head's forward; what it returns in training holds no logits, see `losses`."""
        batch = self._batch
        if batch is None:
            return self._own_forward(hidden, *args, **kwargs)
        batch.calls += 1
        positions = batch.positions.to(hidden.device)
        starts = torch.arange(len(positions), device=hidden.device).unsqueeze(1) * hidden.shape[1]
        places = (starts + positions.clamp(min=0)).flatten()
        if self._after is None:
            taken = hidden.flatten(0, 1).index_select(0, places).unflatten(0, tuple(positions.shape))
            return self._own_forward(taken, *args, **kwargs)
        targets = batch.targets.to(hidden.device).flatten()
        kept = self._kept(batch, positions)
        if kept is not None:
            places, targets = places[kept], targets[kept]
        losses = chunked_losses(
            hidden.flatten(0, 1).index_select(0, places),
            targets,
            partial(self._own_forward, *args, **kwargs) if args or kwargs else self._own_forward,
            head=self._head,
            after=self._after,
            rows=chunk_rows(len(places), self._columns(), self._elements),
        )
        if kept is not None:
            losses = losses.new_zeros(positions.numel()).index_copy(0, kept, losses)
        self._passage = Passage()
        return self._passage.enter(losses.view_as(positions), hidden.dtype)

    def _kept(self, batch: _Batch, positions: torch.Tensor) -> torch.Tensor | None:
        """Return the places `(N,)` of positions that are no padding in the flat `(B * K,)`; None where all are kept."""
        count = batch.count
        if count is None and self._reads:
            count = int((positions >= 0).sum())
        if not self._proved and count is not None and count < int((positions >= 0).sum()):
            raise ModelError(f"{int((positions >= 0).sum())} tokens of a batch are supervised, and it says {count}.")
        if count is None or count == positions.numel():
            return None
        # A batch without any still runs one, for the graph and for an engine's hooks.
        return (positions < 0).flatten().int().argsort(stable=True)[: max(count, 1)]

    def _columns(self) -> int:
        # PEFT puts a module of its own around a head of which it trains rows.
        head: Any = getattr(self._head, "original_module", self._head)
        return int(head.out_features)

    @contextmanager
    def on(self, positions: torch.Tensor, targets: torch.Tensor, count: int | None = None) -> Iterator[None]:
        """Within this context the head makes the losses of `positions` `(B, K)`.

        Args:
            positions: padded with -1.
            targets: `(B, K)` from `gather_targets`.
            count: how many positions are no padding, where that is known without reading the device.

        Raises:
            ModelError: the model ran its head not exactly once, so the loss would be of something else.
        """
        batch = self._batch = _Batch(positions=positions, targets=targets, count=count)
        self._passage = None
        try:
            yield
        finally:
            self._batch = None
        if batch.calls != 1:
            raise ModelError(
                f"The model ran its output embeddings {batch.calls} times in one forward pass; the loss on "
                f"supervised positions needs exactly one. {_REPORT}"
            )

    def losses(self, output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the negative log-likelihood in nats of each target `(B, K)`, in fp32; 0 where ignored.

        Args:
            output: what the model returned as its logits.
            targets: as for `on`.

        Raises:
            ModelError: the model's code does to logits what its family's entry does not say.
        """
        if output.shape[:2] != targets.shape:
            raise ModelError(
                f"Logits of shape {tuple(output.shape)} for {tuple(targets.shape)} supervised positions: the model "
                f"changed the head's input or output. {_REPORT}"
            )
        passage, self._passage = self._passage, None
        if passage is None:
            return token_losses(output.flatten(0, 1), targets.flatten()).view_as(targets)
        if not self._proved:
            self._prove(output)
        return passage.leave(output)

    def _prove(self, output: torch.Tensor) -> None:
        """Compare once what the model's code made of the stand-in with what is done to logits here."""
        assert self._after is not None
        found, expected = float(output.detach().flatten()[0]), float(self._after(torch.tensor(STAND_IN)))
        if abs(found - expected) > 0.01 * abs(expected):
            raise ModelError(
                f"The model's code makes {found:g} of a logit of {STAND_IN:g}, and {expected:g} is what is known of "
                f"its family: the loss would be of something else. {_REPORT}"
            )
        self._proved = True


def _known_change(base: nn.Module) -> Change | None:
    """Return what the model does to its logits, None where that is not known."""
    family = FAMILIES.get(str(getattr(getattr(base, "config", None), "model_type", "")))
    if family is not None:
        return change_of(base, family.after_head)
    logger.info("What %s does to its logits is not known: head and loss are not cut into chunks.", type(base).__name__)
    return None


class ScoredModel(nn.Module):
    """A model with its supervised head as one module: everything that its output depends on is an input.

    Hardware that captures a module's graph and replays it needs that.
    """

    def __init__(self, model: nn.Module, head: SupervisedHead) -> None:
        super().__init__()
        self.model = model
        self._head = head

    def forward(
        self, inputs: dict[str, Any], targets: torch.Tensor, positions: torch.Tensor, count: int | None = None
    ) -> torch.Tensor:
        """Return the row sums `(B, 2)` of `row_sums` for targets and positions `(B, K)`, `count` of them no padding."""
        with self._head.on(positions, targets, count):
            outputs = self.model(**inputs)
        return row_sums(self._head.losses(outputs.logits, targets), targets)


def row_sums(losses: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return `(B, 2)` fp32: each row's summed negative log-likelihood and its number of supervised tokens.

    Args:
        losses: `(B, K)` of the supervised positions.
        targets: `(B, K)`.
    """
    tokens = targets.ne(IGNORE_INDEX).sum(dim=1)
    return torch.stack([losses.sum(dim=1), tokens.float()], dim=1)
