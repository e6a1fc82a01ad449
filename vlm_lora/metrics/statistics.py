"""What adds up over rows, and how sums become figures: so that a bootstrap and groups need no second count.

Each metric counts a few numbers for each row (a score and 1; errors and characters). A figure is a function of their
sums over any rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Sums: TypeAlias = "NDArray[np.float64]"
"""Numbers that add up over rows; the last axis is which number."""

Combine: TypeAlias = Callable[[Sums], Mapping[str, "NDArray[np.float64]"]]
"""Makes figures of sums: shape (..., numbers) gives (...) for each; NaN where the rows hold nothing to measure."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What a metric counts in some rows."""

    sums: Sums
    """Shape (rows, numbers)."""
    rows: list[dict[str, float]] = field(default_factory=list)
    """For each row the figures that it has by itself."""


Count: TypeAlias = Callable[[Sequence[Any], Sequence[Any]], Counted]
"""Counts for predictions and references, row by row."""


def mean_of(name: str, value: Callable[[str, Sequence[str]], float]) -> tuple[Count, Combine]:
    """Return how a score is counted that each row has by itself, and whose figure is the mean over rows."""

    def count(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Counted:
        values = [value(generated, accepted) for generated, accepted in zip(predictions, references, strict=True)]
        return Counted(
            sums=np.array([(one, 1.0) for one in values], dtype=np.float64).reshape(-1, 2),
            rows=[{name: one} for one in values],
        )

    def combine(sums: Sums) -> Mapping[str, NDArray[np.float64]]:
        return {name: ratio(sums[..., 0], sums[..., 1])}

    return count, combine


def ratio(
    part: NDArray[np.float64], whole: NDArray[np.float64], *, empty: float | NDArray[np.float64] = np.nan
) -> NDArray[np.float64]:
    """Divide, with a value of its own where the whole is 0."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), empty)


def precision_recall_f1(
    right: NDArray[np.float64], given: NDArray[np.float64], wanted: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return precision, recall and F1 of counts.

    Nothing given where nothing is wanted is right: all three are 1. Else what divides by zero is 0.

    Args:
        right: how many of the given ones are right.
        given: how many there are.
        wanted: how many there should be.
    """
    nothing = np.where((given == 0) & (wanted == 0), 1.0, 0.0)
    f1 = ratio(2 * right, given + wanted, empty=nothing)
    return ratio(right, given, empty=nothing), ratio(right, wanted, empty=nothing), f1
