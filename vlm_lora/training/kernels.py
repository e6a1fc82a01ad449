"""Liger's fused kernels beside the project's own loss."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from vlm_lora.backend import Backend
from vlm_lora.errors import ConfigError

_LOSSES = ("cross_entropy", "fused_linear_cross_entropy")
"""What of Liger would take the loss's place; its other kernels stand in for norms, rotations and gated layers."""


def with_liger(values: Mapping[str, Any], backend: Backend) -> dict[str, Any]:
    """Return the arguments with Liger's own losses turned off, where `use_liger_kernel` is set.

    Args:
        values: the arguments that were set.
        backend: what runs them.

    Raises:
        ConfigError: the kernels cannot run here, or one of Liger's losses was asked for.
    """
    asked = values.get("liger_kernel_config") or {}
    for name in _LOSSES:
        if asked.get(name):
            raise ConfigError(
                f"liger_kernel_config: {name} {asked[name]} cannot be used: it would replace the loss on supervised "
                "positions, which is made in chunks already. Leave it out, or give false."
            )
    if not values.get("use_liger_kernel"):
        return dict(values)
    if not backend.traits.liger:
        raise ConfigError(
            f"--use_liger_kernel true: Liger's kernels do not run on the backend {backend.name}. Leave it out."
        )
    if find_spec("liger_kernel") is None:
        raise ConfigError(
            "--use_liger_kernel true: its package is not installed. Type pip install liger-kernel, or leave it out."
        )
    return {**values, "liger_kernel_config": {**asked, **dict.fromkeys(_LOSSES, False)}}
