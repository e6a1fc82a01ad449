"""How many processes this machine's GPUs take, and by which numbers DeepSpeed's launcher knows them."""

from __future__ import annotations

import os
from collections.abc import Mapping

from vlm_lora.errors import ConfigError
from vlm_lora_torch import TorchLauncher


class CudaLauncher(TorchLauncher):
    """One process per GPU."""

    def count(self) -> int:
        """Return how many GPUs torch sees; 0 on a machine that only starts the run for others."""
        import torch

        return torch.cuda.device_count()

    def numbers(self) -> list[int]:
        """Return the numbers of the visible GPUs."""
        return visible_devices(os.environ) if self.count() else []


def visible_devices(environ: Mapping[str, str]) -> list[int]:
    """Return the numbers in CUDA_VISIBLE_DEVICES, which DeepSpeed's launcher replaces; none where it is not set.

    Raises:
        ConfigError: it holds identifiers, which that launcher cannot pass on.
    """
    text = environ.get("CUDA_VISIBLE_DEVICES", "")
    numbers = [piece.strip() for piece in text.split(",") if piece.strip()]
    if not all(number.isdigit() for number in numbers):
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES={text}: DeepSpeed's launcher knows devices by number only; write numbers, such as "
            "0,1, or leave --use_deepspeed out (torch's launcher runs --deepspeed FILE too)."
        )
    return [int(number) for number in numbers]
