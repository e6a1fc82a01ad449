"""A look at a model in the middle of its training, after which everything is as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

_REMEMBERED = "rope_deltas"
"""What Qwen's models keep of a prompt's positions for the tokens after it."""
_CACHE = "_cache"
"""What transformers' `generate` keeps of a cache of fixed size: as large as that of a whole batch."""


@contextmanager
def same_randomness(device: torch.device) -> Iterator[None]:
    """Give Python's, numpy's and torch's generators, on the host and on a device, the state they had before.

    Reading rows draws from them too: torch's loader takes a seed for its workers at the start of each pass.
    """
    python, numpy, host = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    generators = None if device.type == "cpu" else _generators(device)
    own = None if generators is None else generators.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.random.set_rng_state(host)
        if generators is not None:
            generators.set_rng_state(own)


def _generators(device: torch.device) -> Any:
    module: Any = torch.get_device_module(device)
    return getattr(module, "random", module)


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation; leave each module's mode, and what it remembers of prompts, as they were.

    A cache that `generate` keeps is let go: the memory is the training's.
    """
    modules: list[Any] = list(model.modules())
    modes = [module.training for module in modules]
    remembered = [(module, getattr(module, _REMEMBERED)) for module in modules if hasattr(module, _REMEMBERED)]
    model.eval()
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
            if _CACHE in vars(module):
                delattr(module, _CACHE)
        for module, value in remembered:
            setattr(module, _REMEMBERED, value)
