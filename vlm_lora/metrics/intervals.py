"""95 % intervals: how far a figure would move with other rows of the same kind."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vlm_lora.metrics.statistics import Combine, Sums

RESAMPLES = 1000
SEED = 20
_Z = 1.959964
"""The 97.5 % point of the normal distribution."""
_AT_ONCE = 4_000_000
"""Drawn row numbers that are held in memory together."""


def wilson(correct: float, total: int) -> tuple[float, float]:
    """Return the Wilson score interval of a share (Wilson 1927)."""
    share = correct / total
    centre = (share + _Z * _Z / (2 * total)) / (1 + _Z * _Z / total)
    half = _Z / (1 + _Z * _Z / total) * math.sqrt(share * (1 - share) / total + _Z * _Z / (4 * total * total))
    # At the ends the formula gives exactly 0 and 1; its rounding does not.
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == total else centre + half)


def bootstrap(counted: Sequence[tuple[Sums, Combine]]) -> dict[str, tuple[float, float]]:
    """Return percentile bootstrap intervals over rows (Efron 1979): 1,000 resamples, the same ones each time.

    Args:
        counted: of each metric what it counted, shape (rows, numbers), all of the same rows, and how its sums become
            figures. All metrics see the same resamples.

    Returns:
        By figure the 2.5 % and 97.5 % points; none for fewer than two rows, which say nothing of others.
    """
    if not counted or len(counted[0][0]) < 2:
        return {}
    joined = np.concatenate([sums for sums, _ in counted], axis=1)
    drawn = _resampled(joined)
    found: dict[str, tuple[float, float]] = {}
    start = 0
    for sums, combine in counted:
        width = sums.shape[1]
        for name, values in combine(drawn[:, start : start + width]).items():
            if not np.isnan(values).all():
                low, high = np.nanpercentile(values, (2.5, 97.5))
                found[name] = float(low), float(high)
        start += width
    return found


def _resampled(sums: Sums) -> Sums:
    """Return the sums over each resample's rows, shape (resamples, numbers)."""
    rows = len(sums)
    generator = np.random.default_rng(SEED)
    parts = []
    left = RESAMPLES
    while left:
        size = min(left, max(1, _AT_ONCE // rows))
        numbers = generator.integers(rows, size=(size, rows)) + np.arange(size)[:, None] * rows
        parts.append(np.bincount(numbers.ravel(), minlength=size * rows).reshape(size, rows) @ sums)
        left -= size
    return np.concatenate(parts)
