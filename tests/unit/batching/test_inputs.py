"""Batches go to a model in the dtype that its tower takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vlm_lora.batching.inputs import moved


class Tower(nn.Module):
    """Takes pixels in its own dtype alone, as Aria's does."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 2, dtype=dtype)
        self.dtype, self.device = dtype, torch.device("cpu")

    def forward(self, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.patches(pixel_values)
        return found


BATCH = {"pixel_values": torch.rand(1, 3, 4, 4), "input_ids": torch.tensor([[1, 2]])}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_tower_gets_pixels_in_its_dtype(dtype: torch.dtype) -> None:
    model = Tower(dtype)
    batch = moved(BATCH, model)
    assert model(**batch).dtype == dtype
    assert batch["input_ids"].dtype == torch.int64
    assert torch.equal(batch["pixel_values"], BATCH["pixel_values"].to(dtype))
    if dtype != torch.float32:
        with pytest.raises(RuntimeError, match=r"type.*should be the same"):
            model(**BATCH)
