"""How long a training waits for its data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any


class DataWait:
    """Counts the seconds that this process waits for batches, before and between its steps.

    Without loader workers that is the time in which it makes them itself. A device that still computes what it was
    given before is not seen: the share is the most that faster data could save.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._told_at: float | None = None
        self._told_seconds = 0.0
        self.seconds = 0.0
        """Of the whole training so far."""

    def go_on(self, seconds: float) -> None:
        """Count also what was waited before the checkpoint that a run goes on from."""
        self.seconds += seconds
        self._told_seconds += seconds

    def over(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield the batches, counting how long each takes to come."""
        while True:
            began = self._clock()
            if self._told_at is None:
                self._told_at = began
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.seconds += self._clock() - began
            yield batch

    def share(self) -> float | None:
        """Return which share of the time since the last call was waited for data; None where there was no time."""
        now = self._clock()
        if self._told_at is None or now <= self._told_at:
            return None
        found = (self.seconds - self._told_seconds) / (now - self._told_at)
        self._told_at, self._told_seconds = now, self.seconds
        return found
