"""Graph control: `mark_step` cuts the lazy graph."""

from typing import Any

from hpu_simulator.library import mark_step as _mark_step

from habana_frameworks.torch import hpu


def mark_step(*args: Any, **kwargs: Any) -> None:
    """Run what was recorded so far."""
    _mark_step()


def hpu_initialize(*args: Any, **kwargs: Any) -> None:
    """Nothing to do: the device is there."""


def hpu_set_env(*args: Any, **kwargs: Any) -> None:
    """Nothing to set."""


__all__ = ["hpu", "hpu_initialize", "hpu_set_env", "mark_step"]
