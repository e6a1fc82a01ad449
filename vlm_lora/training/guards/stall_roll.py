"""The roll that ranks call when one of them stands still, over a connection of its own to the store they met at.

The trainer's own connection cannot be used: one request at a time goes over it, and the one under way may be waiting
for the very rank that stands still.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import PrefixStore, TCPStore

from vlm_lora.training.guards.standing import Answer, described, is_excused

PATIENCE = 10.0
"""Seconds that the others have to answer, and again to show what they do."""


def connect() -> Any:
    """Return a connection to the store that the ranks of this run met at.

    Raises:
        RuntimeError: it cannot be reached.
    """
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    client = TCPStore(*place, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=PATIENCE))
    return PrefixStore("vlm_lora/stall", client)


class StallRoll:
    """What one rank says and hears when the roll is called.

    Args:
        store: shared by all ranks.
        rank: this one's number.
        ranks: how many there are.
        state: returns a process of this machine with its state in words, by host and number.
    """

    def __init__(self, store: Any, rank: int, ranks: int, state: Callable[[str, int], str]) -> None:
        self._store, self._rank, self._ranks, self._state = store, rank, ranks, state
        self._round = 0

    def introduce(self, host: str, pid: int, excuse: str) -> None:
        """Say which process this rank is, and its excuse, which others need where it does not answer."""
        self._store.set(f"who/{self._rank}", json.dumps([host, pid, excuse]))

    def is_called(self) -> bool:
        """Say whether another rank calls."""
        return bool(self._store.check([f"{self._round}/called"]))

    def talk(self, own: Answer, limit: float) -> tuple[str, bool, int]:
        """Call the roll, or answer who calls.

        Returns:
            The message that all ranks agree on, empty where they wait on; whether this rank called first; and there,
            how many do not answer.

        Raises:
            RuntimeError: the store, or the rank that called, answers no more.
        """
        number, self._round = self._round, self._round + 1
        first = self._store.add(f"{number}/callers", 1) == 1
        self._store.set(f"{number}/called", "1")
        self._store.set(f"{number}/answer/{self._rank}", json.dumps(asdict(own)))
        if not first:
            self._store.wait([f"{number}/verdict"], timedelta(seconds=3 * PATIENCE))
            return self._store.get(f"{number}/verdict").decode(), False, 0
        names = [f"{number}/answer/{rank}" for rank in range(self._ranks)]
        there = self._wait_for(names)
        answers = {rank: Answer(**json.loads(self._store.get(names[rank]))) for rank in there}
        silent = {rank: self._known(rank) for rank in range(self._ranks) if rank not in answers}
        said = {rank: (self._state(host, pid), excuse) for rank, (host, pid, excuse) in silent.items()}
        message = "" if is_excused(answers, said) else described(answers, said, limit=limit)
        self._store.set(f"{number}/verdict", message)
        return message, True, len(silent)

    def note_shown(self) -> None:
        """Say that this rank has shown what it does."""
        self._store.set(f"shown/{self._rank}", "1")

    def wait_for_shown(self, silent: int) -> None:
        """Wait until the others have, too: a launcher ends all as soon as one has ended."""
        self._wait_for([f"shown/{rank}" for rank in range(self._ranks)], but=silent)

    def _wait_for(self, names: list[str], *, but: int = 0) -> list[int]:
        """Return the places of those names that are there, once all are but so many, or time is up."""
        deadline = time.monotonic() + PATIENCE
        while True:
            there = [place for place, name in enumerate(names) if self._store.check([name])]
            if len(there) >= len(names) - but or time.monotonic() > deadline:
                return there
            time.sleep(0.1)

    def _known(self, rank: int) -> tuple[str, int, str]:
        if not self._store.check([f"who/{rank}"]):
            return "", 0, ""
        host, pid, excuse = json.loads(self._store.get(f"who/{rank}"))
        return str(host), int(pid), str(excuse)
