"""What a model says about a few rows, and how far two models' words lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vlm_lora.batching.collator import Collator
from vlm_lora.batching.inputs import moved
from vlm_lora.data.conversation import Conversation
from vlm_lora.evaluation.generation import Answerer
from vlm_lora.model.untouched import at_rest
from vlm_lora.session import Preprocessing

_BESIDE = ("labels", "supervised_positions")
"""What a batch holds that is the loss's, not the model's."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one model says about some rows."""

    logits: tuple[torch.Tensor, ...]
    """Of each row at the positions whose next token is supervised, `(K, V)` in float32 on the host."""
    answers: tuple[str, ...]
    """What it answers greedily to each row's question."""


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """How far two readings of the same rows lie apart."""

    rows: int
    largest: float
    """The largest absolute difference of two logits."""
    size: float
    """The largest absolute logit, which says what that difference is worth."""
    equal_answers: int
    """Rows whose greedy answers are the same, character by character."""

    @property
    def relative(self) -> float:
        """The largest difference in units of the largest logit; infinite where one is not finite."""
        return self.largest / self.size if self.size > 0 else self.largest


def read(model: Any, answerer: Answerer, preprocessing: Preprocessing, rows: Sequence[Conversation]) -> Reading:
    """Return what a model says about rows, one row at a time.

    Args:
        model: on its device, with or without PEFT.
        answerer: generates with it.
        preprocessing: makes batches.
        rows: with questions and answers.
    """
    logits = tuple(_logits(model, preprocessing.collator, preprocessing.encoder.encode(row)) for row in rows)
    return Reading(logits=logits, answers=tuple(answerer.answer([row])[0] for row in rows))


@torch.no_grad()
def _logits(model: Any, collator: Collator, row: Any) -> torch.Tensor:
    batch = moved(collator.collate([row]), model)
    positions = batch["supervised_positions"].flatten().clamp(min=0)
    with at_rest(model):
        found = model(**{name: tensor for name, tensor in batch.items() if name not in _BESIDE}).logits
    return found[0].index_select(0, positions).float().cpu()


def deviation(one: Reading, other: Reading) -> Deviation:
    """Return how far two readings of the same rows lie apart; a logit that is not finite is infinitely far."""
    pairs = list(zip(one.logits, other.logits, strict=True))
    differences = [torch.nan_to_num((a - b).abs(), nan=float("inf")).max().item() for a, b in pairs]
    return Deviation(
        rows=len(pairs),
        largest=max(differences, default=0.0),
        size=max((a.abs().max().item() for a, _ in pairs), default=0.0),
        equal_answers=sum(a == b for a, b in zip(one.answers, other.answers, strict=True)),
    )
