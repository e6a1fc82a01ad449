"""The loss of single rows, outside of any trainer."""

from __future__ import annotations

from typing import Any

import torch

from vlm_lora.batching.collator import Collator
from vlm_lora.batching.encoded import EncodedRow
from vlm_lora.model.objective import ScoredModel, SupervisedHead, gather_targets


class RowScorer:
    """Says what one row's loss is.

    Args:
        model: a generative model, with or without PEFT, on its device.
        collator: makes batches.
    """

    def __init__(self, model: Any, collator: Collator) -> None:
        self._device = model.device
        self._scored = ScoredModel(model.eval(), SupervisedHead(model, reads=False))
        self._collator = collator

    @torch.no_grad()
    def __call__(self, row: EncodedRow) -> float:
        """Return the mean negative log-likelihood in nats of the row's supervised tokens."""
        batch = {name: tensor.to(self._device) for name, tensor in self._collator.collate([row]).items()}
        positions = batch.pop("supervised_positions")
        targets = gather_targets(batch.pop("labels"), positions)
        loss, tokens = self._scored(batch, targets, positions)[0].tolist()
        return loss / tokens
