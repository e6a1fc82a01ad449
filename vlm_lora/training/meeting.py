"""A few words between the ranks where something has gone wrong, over the store that they met at: no device is asked."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from vlm_lora.errors import ConfigError, UserError

_meetings = itertools.count()
_Found = TypeVar("_Found")

_PATIENCE = timedelta(seconds=10)
"""How long a rank waits for the first one to have written its message: what else is there to do for it."""


def own_connection() -> Any:
    """Return another connection to the store that the ranks met at; None where torch is too old to make one.

    One request at a time goes over a connection, and a wait is a request: a thread that waited for other ranks would
    hold up the main thread.
    """
    store = _get_default_store()
    return store.clone() if hasattr(store, "clone") else None


class Meeting:
    """Brings what each rank knows to the first one, and its words to all.

    Args:
        rank: this one's number.
        ranks: how many there are; all make their meetings in the same order.
        timeout: how long to wait for the slowest, as for any collective.
        connection: `own_connection`, where another thread than the main one meets; None for that of the main thread.
    """

    def __init__(self, rank: int, ranks: int, timeout: timedelta, connection: Any = None) -> None:
        self._rank, self._ranks, self._timeout = rank, ranks, timeout
        number = next(_meetings)
        self._store: Any = None
        if ranks > 1:
            self._store = PrefixStore(f"vlm_lora/meeting/{number}", connection or _get_default_store())

    def message(self, own: str, compose: Callable[[Sequence[str]], str]) -> str:
        """Return what `compose` makes, on rank 0, of all ranks' texts; all ranks call it once."""
        if self._store is None:
            return compose([own])
        self._store.set(f"own/{self._rank}", own)
        if self._rank == 0:
            names = [f"own/{rank}" for rank in range(self._ranks)]
            self._store.wait(names, self._timeout)
            texts = [self._store.get(name).decode() for name in names]
            self._store.set("message", compose(texts))
            for name in names:
                self._store.delete_key(name)
        self._store.wait(["message"], self._timeout)
        return str(self._store.get("message").decode())

    def told(self) -> None:
        """Say on rank 0 that its message is written, and wait for that on the others.

        A launcher ends all ranks as soon as one has ended: that must not be before the message is out.
        """
        if self._store is None:
            return
        try:
            if self._rank == 0:
                self._store.set("told", "")
            else:
                self._store.wait(["told"], _PATIENCE)
        except RuntimeError:
            # Rank 0, which may keep the store, has ended: it has written by now, and nothing is left to wait for.
            return


def agreeing(arguments: Any, action: Callable[[], _Found]) -> _Found:
    """Return what `action` returns; where it is refused on any rank, all ranks raise the first refusal, told once.

    Args:
        arguments: the training arguments, of which all ranks call this.
        action: looks at what all ranks look at alike.

    Raises:
        UserError: what it raised on the first rank that refused.
    """
    meeting = Meeting(arguments.process_index, arguments.world_size, timedelta(seconds=arguments.ddp_timeout))
    refused: UserError | None = None
    try:
        found = action()
    except UserError as error:
        refused = error
    said = meeting.message("" if refused is None else str(refused), first_text)
    if not said:
        return found
    if refused is None or str(refused) != said:
        refused = ConfigError(said)
    refused.told = meeting.told if arguments.world_size > 1 else None
    raise refused


def first_text(texts: Sequence[str]) -> str:
    """Return the first text that is not empty; an empty one where there is none."""
    return next((text for text in texts if text), "")
