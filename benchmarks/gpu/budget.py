"""Seconds for a whole benchmark, shared out among its stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


class Budget:
    """A total that stages share; what one leaves goes to those behind it.

    Args:
        total: seconds in all, counted from now.
        shares: by stage, in their order; of any sum.
        clock: tells the time in seconds.
    """

    def __init__(self, total: float, shares: Mapping[str, float], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + total
        self._shares = dict(shares)

    def left(self) -> float:
        """Return the seconds left in all."""
        return self._end - self._clock()

    def begin(self, stage: str) -> Callable[[], float]:
        """Return what tells the seconds that a stage has left, by its share of what is left now.

        Stages that were left out give their share to the others.
        """
        names = list(self._shares)
        behind = sum(self._shares[name] for name in names[names.index(stage) :])
        end = self._clock() + max(0.0, self.left()) * self._shares[stage] / behind
        return lambda: end - self._clock()

    def planned(self) -> dict[str, float]:
        """Return each stage's seconds if every one used all of its own."""
        whole = sum(self._shares.values())
        return {name: self.left() * share / whole for name, share in self._shares.items()}
