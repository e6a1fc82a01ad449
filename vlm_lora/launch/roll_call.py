"""How long the ranks of a run wait for each other, and which of them does not answer.

A collective that is not joined by all says nothing about who is missing. So a rank that has waited too long calls the
roll: each that can answers in the store that they met at, within seconds, since all have waited for the same one.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from vlm_lora.launch.process_group import leave_at_once, lost_partner

Value = TypeVar("Value")

PATIENCE = 5.0
"""Seconds that the others have to answer."""

_SIGNS = re.compile("[Tt]imed out (?:waiting|after)|[Ww]ait timeout|Socket Timeout")
"""What gloo and torch's store say where the other side does not answer."""

_limits: list[float] = []
"""What the processes of this run wait at most, once it is set."""


class NoAnswerError(RuntimeError):
    """What was asked for did not come in time."""


def limit_waiting(seconds: float) -> None:
    """Let every process group that is made from now on wait at most so long for a rank, if nothing else is said of it.

    transformers has `--ddp_timeout` for that and leaves it out on CPUs; DeepSpeed says nothing for the groups that it
    makes of its own. NCCL's default stays as it is: 10 minutes, as it ends a process by other means.
    """
    from torch.distributed import distributed_c10d

    distributed_c10d.default_pg_timeout = timedelta(seconds=seconds)
    _limits[:] = [seconds]


def introduce() -> None:
    """Write into the store which process this rank is, for messages of others."""
    store = _store()
    if store is not None:
        store.set(f"who/{_rank()}", f"{socket.gethostname()} {os.getpid()}")


def within(seconds: float, ask: Callable[[], Value]) -> Value:
    """Return what `ask` returns, asked in a thread: the store waits for ever where the rank that keeps it is stopped.

    Raises:
        NoAnswerError: nothing came in time.
    """
    answers: list[Value] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise NoAnswerError("Timed out waiting for the store that the ranks met at")
    return answers[0]


def silent_rank(error: BaseException) -> str | None:
    """Return a message if `error` is a wait for a rank that took too long, else None. Calling the roll takes seconds.

    A rank that only noticed that another has gone answers too, and stays until that one has spoken.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not isinstance(error, RuntimeError):
        return None
    if isinstance(error, NoAnswerError) or _SIGNS.search(str(error)):
        return _message()
    if lost_partner(error):
        _answer()
    return None


def _message() -> str:
    leave_at_once()
    try:
        missing = within(2 * PATIENCE, _call)
    except (NoAnswerError, RuntimeError):
        place = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        who = f"Rank 0 or what keeps the store that the ranks met at ({place})"
    else:
        who = " and ".join(missing) if missing else "Another rank"
    limit = f"{_limits[0]:g} s" if _limits else "SECONDS"
    return (
        f"{who} did not answer within --ddp_timeout {limit}; rank {_rank()} waited in vain. A process that is stopped "
        "(kill -STOP, Ctrl-Z, a debugger) or stuck (a disk, a device) answers nobody, and the run cannot go on without "
        "it. Where ranks wait longer for a reason, such as one that checks large data first, type a larger "
        "--ddp_timeout SECONDS."
    )


def _call() -> list[str]:
    """Return the ranks that do not answer, each with its process; none where all do, or where there is no store yet."""
    store = _store()
    if store is None:
        return []
    store.set("called", "1")
    store.set(f"here/{_rank()}", "1")
    missing = [rank for rank in range(_size()) if rank != _rank()]
    deadline = time.monotonic() + PATIENCE
    while missing and time.monotonic() < deadline:
        missing = [rank for rank in missing if not store.check([f"here/{rank}"])]
        time.sleep(0.1)
    named = [_named(store, rank) for rank in missing]
    store.set("told", "1")
    return named


def _answer() -> None:
    """Answer a call, and let the one that calls speak first: a launcher ends all once one has ended."""

    def answer() -> bool:
        store = _store()
        if store is None or not store.check(["called"]):
            return True
        store.set(f"here/{_rank()}", "1")
        store.wait(["told"], timedelta(seconds=PATIENCE))
        time.sleep(1)
        return True

    try:
        within(2 * PATIENCE, answer)
    except RuntimeError:
        return  # the store has gone as well: there is nobody to answer


def _named(store: Any, rank: int) -> str:
    """Return a rank with its process, and that one's state where it is on this machine."""
    if not store.check([f"who/{rank}"]):
        return f"Rank {rank}"
    host, pid = store.get(f"who/{rank}").decode().split()
    if host != socket.gethostname():
        return f"Rank {rank} (pid {pid} on {host})"
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return f"Rank {rank} (pid {pid}, which has ended)"
    return f"Rank {rank} (pid {pid}{', which is stopped' if state in ('T', 't') else ''})"


def _store() -> Any:
    """Return the store that the ranks of this run met at, with a corner of our own; None before they met."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

    return PrefixStore("vlm_lora/roll_call", _get_default_store())


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
