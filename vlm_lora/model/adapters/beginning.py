"""What LoRA began with (`--lora_init pissa`, `olora`) stays as it is while the rest is trained."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from vlm_lora.model.adapters.starts import matrices


class KeepBeginning(TrainerCallback):
    """Puts the frozen halves back after each update: decay, and some optimizers, move what has no gradient."""

    def __init__(self, tuned: Any) -> None:
        self._halves = [(parameter, dimension) for parameter, dimension in matrices(tuned)]
        self._begun: list[torch.Tensor] = []

    @torch.no_grad()
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember them; a checkpoint that the run goes on from has been loaded."""
        self._begun = [parameter.chunk(2, dim=dimension)[1].clone() for parameter, dimension in self._halves]

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put them back."""
        for (parameter, dimension), begun in zip(self._halves, self._begun, strict=True):
            parameter.chunk(2, dim=dimension)[1].copy_(begun)
