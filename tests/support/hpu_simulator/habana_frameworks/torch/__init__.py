"""`import habana_frameworks.torch` makes the `hpu` device and `torch.hpu` exist."""

import sys

import torch as _torch
from hpu_simulator.library import library

library()

from habana_frameworks.torch import hpu  # noqa: E402 - the device must be there first

if not hasattr(_torch, "hpu"):
    _torch._register_device_module("hpu", hpu)
    sys.modules["torch.hpu"] = hpu

from habana_frameworks.torch import core  # noqa: E402

__all__ = ["core", "hpu"]
