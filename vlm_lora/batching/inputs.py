"""A batch as a model reads it: where the model is, its pixels in the model's dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

_SHORT = (torch.bfloat16, torch.float16)


def moved(batch: Mapping[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """Return a batch on the model's device.

    Pixels are float32. Most towers cast them to their own dtype, and some (Aria's) fail instead where no autocast does:
    for a model in 16 bits they are cast here.

    Args:
        batch: tensors on the host.
        model: with or without PEFT.
    """
    dtype = model.dtype if model.dtype in _SHORT else None
    return {
        name: tensor.to(model.device, dtype if tensor.is_floating_point() else None) for name, tensor in batch.items()
    }
