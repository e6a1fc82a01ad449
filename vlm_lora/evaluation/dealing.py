"""Which rows are answered together, and by which process: each row once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Round:
    """Rows that one process answers at once."""

    rows: tuple[int, ...]
    """Their numbers in the split; one that is not the process's own where `filler`."""
    group: int = 0
    """Of which group of rows that may share a batch."""
    filler: bool = False
    """Whether it is answered only because others wait for this process to take part."""


def spread(count: int, samples: int) -> list[int]:
    """Return the numbers of `samples` of `count` rows, evenly spread; all where `samples` is 0 or more than there are.

    >>> spread(10, 4)
    [0, 2, 5, 7]
    """
    kept = count if samples == 0 else min(count, samples)
    return [place * count // kept for place in range(kept)]


def deal(
    rows: Sequence[int],
    *,
    processes: int,
    batch_size: int,
    size_of: Callable[[int], object] | None = None,
    groups: Sequence[Sequence[int]] = (),
    fills: bool = False,
) -> list[list[Round]]:
    """Deal rows out to processes in rounds.

    Args:
        rows: numbers of the rows to answer.
        processes: how many there are.
        batch_size: most rows of a round.
        size_of: what rows are sorted by, the largest first, so that those of a round are alike and memory that lacks
            lacks at once; None keeps their order.
        groups: rows that may share a batch; none where any may. Rounds of groups are of `batch_size` rows as far as
            there are any, for hardware that compiles each size; else rows are shared out evenly.
        fills: all processes get the same number of rounds, of which the last may be fillers.

    Returns:
        The rounds of each process.
    """
    wanted = set(rows)
    own = [[row for row in group if row in wanted] for group in groups] if groups else [list(rows)]
    rounds: list[Round] = []
    for number, members in enumerate(own):
        ordered = members if size_of is None else sorted(members, key=size_of, reverse=True)  # type: ignore[arg-type]
        size = batch_size if groups else _even(len(members), processes, batch_size)
        rounds += [
            Round(rows=tuple(ordered[start : start + size]), group=number) for start in range(0, len(ordered), size)
        ]
    dealt = [rounds[process::processes] for process in range(processes)]
    if not fills:
        return dealt
    most = len(dealt[0])
    # The others are in their last round then, the shortest: so is the filler.
    return [own if len(own) == most else [*own, _filler(rounds[-1])] for own in dealt]


def _filler(last: Round) -> Round:
    return Round(rows=last.rows[:1], group=last.group, filler=True)


def _even(rows: int, processes: int, batch_size: int) -> int:
    """Return the size of rounds of which all processes have equally many, as equal as can be."""
    turns = max(1, math.ceil(rows / (processes * batch_size)))
    return max(1, math.ceil(rows / (processes * turns)))
