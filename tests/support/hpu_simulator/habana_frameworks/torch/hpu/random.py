"""Random numbers of the device: the CPU's generator, so dropout draws the same numbers as there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

default_generators = (torch.default_generator,)


def get_rng_state(device: Any = None) -> torch.Tensor:
    """Return the generator's state."""
    return torch.default_generator.get_state()


def set_rng_state(state: torch.Tensor, device: Any = None) -> None:
    """Set the generator's state."""
    torch.default_generator.set_state(state)


def get_rng_state_all() -> list[torch.Tensor]:
    """Return the states of all devices: one."""
    return [get_rng_state()]


def set_rng_state_all(states: Sequence[torch.Tensor]) -> None:
    """Set the states of all devices."""
    for state in states:
        set_rng_state(state)


def manual_seed(seed: int) -> None:
    """Seed nothing: `torch.manual_seed` has seeded the shared generator, and seeding twice changes nothing."""
    torch.default_generator.manual_seed(int(seed))


manual_seed_all = manual_seed


def seed() -> int:
    """Seed from the system."""
    return torch.default_generator.seed()


seed_all = seed


def initial_seed() -> int:
    """Return the last seed."""
    return torch.default_generator.initial_seed()
