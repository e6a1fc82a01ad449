"""Whether one run answers better than another on the same rows, or is only luckier.

Both runs answered the same rows, so each row is compared with itself, which tells apart much smaller differences than
two means with intervals of their own. Scores of 0 and 1 are tested by McNemar's exact test (Psychometrika 12, 1947): of
the rows that only one run got right, each is as likely the one's as the other's if the runs are equally good. Other
scores are tested by sign flips, a permutation test: if the runs are equally good, each row's difference may as well
have the other sign. Intervals of the difference are by the bootstrap over rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FLIPS = 10_000
RESAMPLES = 2_000
_AT_ONCE = 4_000_000
"""Numbers drawn at a time."""
_NOISE = 1e-12
"""Sums closer than this are equal: the order of adding changes their last digits."""

MCNEMAR, SIGN_FLIPS = "exact McNemar test", "sign-flip test"


@dataclass(frozen=True, kw_only=True)
class Paired:
    """One score of two runs on the rows that both answered."""

    rows: int
    first: float
    """Mean of the first run."""
    second: float
    interval: tuple[float, float]
    """95 % of the difference of the means, second less first."""
    p: float
    """How often chance alone would give a difference at least as large."""
    test: str
    higher: int
    """Rows on which the second run's score is higher."""
    lower: int

    @property
    def difference(self) -> float:
        """Mean of the second run less that of the first."""
        return self.second - self.first


def compare(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> Paired:
    """Compare two runs by a score of the same rows.

    Args:
        first: the first run's score of each row.
        second: the second's, in the same order.
        seed: of the draws.

    Raises:
        ValueError: there are no rows, or not as many of both.
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != other.shape or not one.size:
        raise ValueError(f"{one.size} and {other.size} scores cannot be paired")
    differences = other - one
    higher, lower = int((differences > 0).sum()), int((differences < 0).sum())
    binary = bool(np.isin(one, (0, 1)).all() and np.isin(other, (0, 1)).all())
    draws = np.random.default_rng(seed)
    return Paired(
        rows=int(one.size),
        first=float(one.mean()),
        second=float(other.mean()),
        interval=_interval(differences, draws),
        p=mcnemar(higher, lower) if binary else sign_flips(differences, draws),
        test=MCNEMAR if binary else SIGN_FLIPS,
        higher=higher,
        lower=lower,
    )


def mcnemar(higher: int, lower: int) -> float:
    """Return the two-sided p of McNemar's exact test.

    Args:
        higher: rows that only the second run got right.
        lower: rows that only the first did.

    >>> mcnemar(0, 0), mcnemar(1, 5), mcnemar(5, 1), mcnemar(3, 3)
    (1.0, 0.21875, 0.21875, 1.0)
    """
    rows, ways, total = higher + lower, 1, 0
    for right in range(min(higher, lower) + 1):
        total += ways
        ways = ways * (rows - right) // (right + 1)
    return min(1.0, 2 * total / 2**rows)


def sign_flips(differences: Any, draws: np.random.Generator) -> float:
    """Return the two-sided p of a sign-flip test of `(n,)` differences, never below one in `FLIPS + 1`."""
    moved = differences[differences != 0]
    if not moved.size:
        return 1.0
    seen, extreme = abs(float(moved.sum())), 0
    for count in _batches(FLIPS, moved.size):
        signs = draws.integers(0, 2, (count, moved.size), dtype=np.int8) * np.int8(2) - np.int8(1)
        extreme += int((np.abs(signs @ moved) >= seen - _NOISE).sum())
    return (extreme + 1) / (FLIPS + 1)


def _interval(differences: Any, draws: np.random.Generator) -> tuple[float, float]:
    """Return the percentile interval of the mean of `(n,)` differences, over resampled rows."""
    means = [
        differences[draws.integers(0, differences.size, (count, differences.size))].mean(axis=1)
        for count in _batches(RESAMPLES, differences.size)
    ]
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return float(low), float(high)


def _batches(total: int, width: int) -> list[int]:
    """Divide so many draws of a width into batches that fit into memory."""
    size = max(1, min(total, _AT_ONCE // width))
    return [min(size, total - start) for start in range(0, total, size)]
