"""How fast a training goes, and how long it will take: by the last steps, evaluations and saving left out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from vlm_lora.training.observers import Advance

WINDOW = 20
"""Steps that a rate is taken over."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Of one moment; None where nothing is known yet."""

    rows: float | None = None
    """A second, all processes together."""
    tokens: float | None = None
    seconds_left: float | None = None


class Pace:
    """Takes the time of steps.

    The first step of a run counts in no rate: it waits for compilers and loader workers. The time left is by all the
    time since that step, evaluations included: they will come again.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self._first: tuple[float, int] | None = None
        self._times: deque[tuple[float, Advance]] = deque(maxlen=WINDOW + 1)
        self._paused_at: float | None = None
        self._paused = 0.0

    def pause(self) -> None:
        """Note that something else than steps begins."""
        if self._paused_at is None:
            self._paused_at = self._clock()

    def go_on(self) -> None:
        """Note that steps come again."""
        if self._paused_at is not None:
            self._paused += self._clock() - self._paused_at
            self._paused_at = None

    def step(self, advance: Advance) -> None:
        """Note a step."""
        self.go_on()
        now = self._clock()
        if self._first is None:
            self._first = (now, advance.step)
        self._times.append((now - self._paused, advance))

    def rates(self) -> Rates:
        """Return how fast the last steps were."""
        if self._first is None or len(self._times) < 2:
            return Rates()
        (before, first), (now, last) = self._times[0], self._times[-1]
        seconds = now - before
        began, step = self._first
        whole = self._clock() - began
        if seconds <= 0 or last.step <= step:
            return Rates()
        return Rates(
            rows=(last.rows - first.rows) / seconds,
            tokens=(last.tokens - first.tokens) / seconds,
            seconds_left=whole / (last.step - step) * (last.steps - last.step),
        )

    def seconds(self) -> float:
        """Return how long it has been since this was made."""
        return self._clock() - self._began
