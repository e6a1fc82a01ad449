"""What a class of transformers leaves out is added: where its head is, and counts as the lists that it takes alone."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from vlm_lora.model.head.completion import complete


class Counting(nn.Module):
    """Splits by counts, which torch does by lists alone."""

    def __init__(self, model_type: str) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type=model_type)
        self.language_model = nn.ModuleDict({"lm_head": nn.Linear(2, 3)})

    @property
    def base_model(self) -> nn.Module:
        return self

    def get_output_embeddings(self) -> nn.Module | None:
        return None

    def forward(self, num_local_patches: Any) -> tuple[torch.Tensor, ...]:
        return torch.split(torch.arange(3), num_local_patches)


def test_the_head_is_said_where_the_class_does_not_say_it() -> None:
    model = Counting("nemotron_h_omni")
    complete(model)
    again = copy.deepcopy(model)
    assert model.get_output_embeddings() is model.language_model["lm_head"]
    assert again.get_output_embeddings() is again.language_model["lm_head"]
    other = Counting("llava")
    complete(other)
    assert other.get_output_embeddings() is None


def test_counts_are_handed_over_as_lists_where_the_class_takes_no_other() -> None:
    counts = torch.tensor([1, 2])
    model = Counting("unlimited_ocr")
    complete(model)
    assert [piece.tolist() for piece in model(num_local_patches=counts)] == [[0], [1, 2]]
    other = Counting("deepseek_ocr2")
    complete(other)
    with pytest.raises(TypeError):
        other(num_local_patches=counts)
