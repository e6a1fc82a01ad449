"""Bars of a histogram, in the units of an SVG drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 300, 88
"""Of the space that bars stand in."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar, from the top left corner of the space."""

    x: float
    y: float
    width: float
    height: float
    label: str


def bars(figures: Mapping[str, Any]) -> list[Bar]:
    """Return the bars of a distribution, the tallest as high as the space.

    Args:
        figures: `counts`, and `edges`: bar i counts the values from edge i up to, not including, edge i + 1.
    """
    counts: Sequence[int] = figures["counts"]
    edges: Sequence[int] = figures["edges"]
    if not counts:
        return []
    step, tallest = WIDTH / len(counts), max(counts)
    found = []
    for number, count in enumerate(counts):
        height = count * HEIGHT / tallest
        first, last = edges[number], edges[number + 1] - 1
        place = str(first) if first == last else f"{first} to {last}"
        found.append(
            Bar(
                x=round(number * step, 1),
                y=round(HEIGHT - height, 1),
                width=round(step - 1, 1),
                height=round(height, 1),
                label=f"{place}: {count}",
            )
        )
    return found
