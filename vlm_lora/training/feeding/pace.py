"""What the training log says of speed, padding and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from vlm_lora.batching.collator import Fed


class Pace:
    """Measures the steps since the last line of the log, without what lies between: evaluations and checkpoints.

    Args:
        memory: returns the device's figures in bytes, by name.
        clock: returns seconds.
    """

    def __init__(self, memory: Callable[[], Mapping[str, int]], clock: Callable[[], float] = time.perf_counter) -> None:
        self._memory = memory
        self._clock = clock
        self._began: float | None = None
        self._fed = Fed(rows=0, tokens=0)

    def step_begins(self) -> None:
        """Take note that a step begins, before its batches are taken."""
        if self._began is None:
            self._began = self._clock()

    def since_last(self, fed: Fed, processes: int) -> dict[str, float]:
        """Return the figures since the last call: rows and tokens a second of all processes, padding's share, bytes.

        Args:
            fed: what this process has trained on so far.
            processes: of the run; they are taken to be fed alike.
        """
        if self._began is None:
            return {}
        seconds, held = self._clock() - self._began, fed - self._fed
        self._began, self._fed = None, fed
        figures: dict[str, float] = {}
        if seconds > 0 and held.rows:
            figures["rows_per_second"] = round(held.rows * processes / seconds, 3)
            figures["tokens_per_second"] = round(held.tokens * processes / seconds, 1)
        if held.padding is not None:
            figures["padding"] = round(held.padding, 4)
        return {**figures, **self._memory()}


def padding_of(fed: Fed) -> dict[str, float]:
    """Return which share of the computed tokens of a whole training was padding, as its results have it."""
    return {} if fed.padding is None else {"train_padding_share": round(fed.padding, 4)}
