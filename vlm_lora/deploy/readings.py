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
    rounding: float | None = None
    """How far one rounding error in each weight moves a logit of these at most; None where that was not asked."""


def read(model: Any, answerer: Answerer, preprocessing: Preprocessing, rows: Sequence[Conversation]) -> Reading:
    """Return what a model says about rows, one row at a time.

    Args:
        model: on its device, with or without PEFT.
        answerer: generates with it.
        preprocessing: makes batches.
        rows: with questions and answers.
    """
    logits = logits_of(model, preprocessing, rows)
    return Reading(logits=logits, answers=tuple(answerer.answer([row])[0] for row in rows))


def logits_of(model: Any, preprocessing: Preprocessing, rows: Sequence[Conversation]) -> tuple[torch.Tensor, ...]:
    """Return a model's logits of rows, as a `Reading` has them."""
    return tuple(_logits(model, preprocessing.collator, preprocessing.encoder.encode(row)) for row in rows)


@torch.no_grad()
def nudge(model: Any) -> None:
    """Move each weight by one rounding error of its dtype in place, up or down by (seeded) chance.

    What that does to the logits is what rounding may do to them, and no two orders of a sum agree better: the deeper
    and the less trained a model is, the further they go.
    """
    chance = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.is_floating_point():
            sign = torch.randint(0, 2, weight.shape, generator=chance).mul_(2).sub_(1)
            weight.mul_(1 + sign.to(weight) * torch.finfo(weight.dtype).eps)


@torch.no_grad()
def _logits(model: Any, collator: Collator, row: Any) -> torch.Tensor:
    batch = moved(collator.collate([row]), model)
    positions = batch["supervised_positions"].flatten().clamp(min=0)
    with at_rest(model):
        found = model(**{name: tensor for name, tensor in batch.items() if name not in _BESIDE}).logits
    return found[0].index_select(0, positions).float().cpu()


def deviation(one: Reading, other: Reading) -> Deviation:
    """Return how far two readings of the same rows lie apart; a logit that is not finite is infinitely far."""
    return Deviation(
        rows=len(one.logits),
        largest=largest_difference(one.logits, other.logits),
        size=max((logits.abs().max().item() for logits in one.logits), default=0.0),
        equal_answers=sum(a == b for a, b in zip(one.answers, other.answers, strict=True)),
    )


def largest_difference(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """Return the largest absolute difference of the same rows' logits; infinite where one is not finite."""
    pairs = zip(one, other, strict=True)
    return max((torch.nan_to_num((a - b).abs(), nan=float("inf")).max().item() for a, b in pairs), default=0.0)
