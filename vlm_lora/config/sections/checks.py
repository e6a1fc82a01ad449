"""Checks of single values that sections of the configuration share."""

from __future__ import annotations

import math

from vlm_lora.errors import ConfigError


def check_choice(flag: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not among those allowed; names the flag and all of them."""
    if value not in allowed:
        raise ConfigError(f"--{flag} {value}: allowed are {', '.join(allowed)}.")


def check_positive(flag: str, value: float | None) -> None:
    """Refuse a number that is not above 0 and finite."""
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"--{flag} {value}: must be a finite number above 0.")
