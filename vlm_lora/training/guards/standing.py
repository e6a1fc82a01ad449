"""How far a process has come in its training, how long it has stood still, and what is said of ranks that do."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

LEAST, STEPS = 1800.0, 20
"""Seconds, and median steps, that a training may stand still where nothing else is said."""


class Standing:
    """A process's place in its training. The training moves it, and the watchdog's thread looks at it.

    Args:
        timeout: `--stall_timeout`, above 0; None for the default.
    """

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._took: deque[float] = deque(maxlen=100)
        self._seen = -1
        self._still = 0.0
        self.count = 0
        """Moves so far: of two ranks, the one that has made fewer is behind."""
        self.step = 0
        """Steps that are done."""
        self.excuse = "the first step"
        """Why standing still means nothing just now; empty where it does."""

    def move(self, excuse: str | None = None) -> None:
        """Come further; with an excuse for what follows, none (empty), or the one from before (None)."""
        self.count += 1
        if excuse is not None:
            self.excuse = excuse

    def end_step(self, seconds: float, excuse: str) -> None:
        """Come to a step's end, which took so many seconds."""
        if self.step:  # the first one compiles and reads what later ones have
            self._took.append(seconds)
        self.step += 1
        self.move(excuse)

    @property
    def limit(self) -> float:
        """Seconds that this process may stand still."""
        if self._timeout is not None:
            return self._timeout
        return max(LEAST, STEPS * statistics.median(self._took)) if self._took else LEAST

    def is_stalled(self, seconds: float) -> bool:
        """Say whether the training has stood still too long; called again and again, `seconds` after the last time.

        What is counted are these looks and not a clock: while the process itself is stopped, none is made.
        """
        if self.count != self._seen or self.excuse:
            self._seen = self.count
            self._still = 0.0
            return False
        self._still += seconds
        return self._still >= self.limit

    def wait_on(self) -> None:
        """Begin to count anew."""
        self._still = 0.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a rank says of itself when the roll is called."""

    who: str
    """Its process and that one's state."""
    count: int
    step: int
    excuse: str
    workers: str
    """Its loader workers that cannot run; empty where all can."""


def is_excused(answers: Mapping[int, Answer], silent: Mapping[int, tuple[str, str]]) -> bool:
    """Say whether what the ranks wait for is nothing unusual.

    Args:
        answers: of the ranks that answered.
        silent: of the others: process and state, and the excuse that they gave last. A stopped one has none.
    """
    return any(one.excuse for one in answers.values()) or any(
        excuse and "(T" not in who and "; T" not in who for who, excuse in silent.values()
    )


def described(answers: Mapping[int, Answer], silent: Mapping[int, tuple[str, str]], *, limit: float) -> str:
    """Return the message of a training that stands still: who is behind.

    Args:
        answers: by rank, at least one.
        silent: as for `is_excused`.
        limit: seconds that were waited.
    """
    if silent:
        ranks = " and ".join(f"rank {rank} ({who})" for rank, (who, _) in sorted(silent.items()))
        cause = f"{ranks} {'does' if len(silent) == 1 else 'do'} not answer"
    elif len(answers) == 1:
        (one,) = answers.values()
        cause = f"process {one.who} stands in step {one.step + 1}"
    else:
        least = min(one.count for one in answers.values())
        behind = {rank: one for rank, one in sorted(answers.items()) if one.count == least}
        if len(behind) == len(answers):
            cause = (
                f"all {len(answers)} ranks stand at the same place, in step {next(iter(behind.values())).step + 1}: "
                "what they wait for is a device, or the network between them"
            )
        else:
            ranks = " and ".join(f"rank {rank} ({one.who}), in step {one.step + 1}," for rank, one in behind.items())
            cause = f"{ranks} {'is' if len(behind) == 1 else 'are'} behind, and the others wait"
    workers = "; ".join(one.workers for one in answers.values() if one.workers)
    stuck = f"; {workers}" if workers else ""
    return (
        f"The training stood still for {limit:g} seconds (--stall_timeout): {cause}{stuck}. What each process that can "
        "run was doing is shown above. The same command with --resume_from_checkpoint auto goes on from the last "
        "checkpoint; where a step needs longer for a reason, type a larger --stall_timeout SECONDS."
    )
