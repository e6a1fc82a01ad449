"""How messages write names and values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def quoted(names: Iterable[object]) -> str:
    """Return names in quotes with commas between; `nothing` where there are none."""
    return joined(f"'{name}'" for name in names)


def joined(names: Iterable[object]) -> str:
    """Return names as they are with commas between; `nothing` where there are none."""
    return ", ".join(map(str, names)) or "nothing"


def counted(number: float, one: str, several: str | None = None, *, form: str = "") -> str:
    """Return a number with its noun: `1 row`, `2 rows`.

    Args:
        number: how many.
        one: the noun, with what belongs to it, for one.
        several: the same for any other number; by default with an s.
        form: how the number is written, as `format` has it.
    """
    return f"{number:{form}} {one if number == 1 else several or f'{one}s'}"


def short(value: Any) -> str:
    """Return a value as Python writes it, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
