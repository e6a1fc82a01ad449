"""How figures are written for people: as many digits as they mean, names without underscores."""

from __future__ import annotations

import math
import os
import textwrap
from pathlib import Path
from typing import Any

LABEL = 11
"""Columns of the labels that stand before facts."""


def spell_figure(value: float) -> str:
    """Write a figure with four digits, whole numbers whole: `0.5987`, `1.82`, `1,204`, `2.3e-05`."""
    if not math.isfinite(value):
        return {math.inf: "infinite", -math.inf: "-infinite"}.get(value, "not a number")
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def spell_name(name: str) -> str:
    """Write a figure's name as words: `eval_exact_match` is `exact match`."""
    return name.removeprefix("eval_").replace("_", " ")


def spell_path(path: Path | str) -> str:
    """Write a path from here, where that is shorter."""
    whole = str(path)
    try:
        near = os.path.relpath(whole)
    except ValueError:  # on another drive
        return whole
    return near if len(near) < len(whole) else whole


def labelled(label: str, text: str, columns: int) -> list[str]:
    """Return a fact behind its label, in lines of at most so many columns; 0 for one line, however long."""
    if not columns:
        return [f"{label}: {text}"]
    return textwrap.wrap(
        text,
        width=max(columns, 20),
        initial_indent=label.ljust(LABEL),
        subsequent_indent=" " * LABEL if columns >= 60 else "  ",
        break_on_hyphens=False,
    )


def rounded(value: Any) -> Any:
    """Return results with each number as exact as it means something: six digits, whole numbers whole."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    if isinstance(value, float) and math.isfinite(value) and not value.is_integer():
        return float(f"{value:.6g}")
    return value
