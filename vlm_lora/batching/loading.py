"""Loader workers that are waited for so long and no longer: what is said of one that is stopped, stuck or killed."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from vlm_lora.errors import StalledError
from vlm_lora.launch.binding import bind_to_parent
from vlm_lora.launch.stop_signals import leave_to_parent

_WORKERS, _ROWS = 64, 4
"""Workers whose rows are noted, and how many of a batch."""

_TIMED_OUT = re.compile(r"DataLoader timed out after")
_ENDED = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([^.]*)|exited unexpectedly)"
)
"""What torch says (torch/utils/data/dataloader.py and torch/csrc/DataLoader.cpp)."""

_STATES = {
    "T": "stopped, as by SIGSTOP or Ctrl-Z",
    "t": "stopped by a debugger",
    "D": "waiting for a disk or another device",
    "R": "computing",
    "S": "waiting",
    "Z": "ended",
}
"""A process's state in /proc (proc(5)) in words."""

_ended_by_us: dict[int, str] = {}
"""Workers that were killed here because they had been stopped too long, and what to say of them."""

_LET_GO = 5.0
"""Seconds for a killed worker to be gone."""


class InHand:
    """Which rows each worker took last: numbers in memory that workers and the process that started them share."""

    def __init__(self) -> None:
        self._table = torch.zeros((_WORKERS, 2 + _ROWS), dtype=torch.int64).share_memory_()
        self._bound_in = 0

    def note(self, rows: Sequence[int]) -> None:
        """Note in a worker what it is to read now; in another process do nothing.

        A worker is bound to the process that started it here. torch's own look at it, every five seconds, is taken
        between batches alone: one that is stopped or stuck would outlive a trainer that is killed. Signals to the whole
        group are left to that process here, too.
        """
        worker = get_worker_info()
        if worker is None:
            return
        if self._bound_in != os.getpid():
            self._bound_in = os.getpid()
            bind_to_parent()
            parent = multiprocessing.parent_process()
            if parent is not None and os.getppid() != parent.pid:  # it ended before this process was bound to it
                os.kill(os.getpid(), signal.SIGKILL)
            leave_to_parent()
        if worker.id < _WORKERS:
            numbers = [os.getpid(), len(rows), *rows[:_ROWS]]
            self._table[worker.id, : len(numbers)] = torch.tensor(numbers)

    @property
    def pids(self) -> list[int]:
        """Return the workers that took a row."""
        return [pid for pid in self._table[:, 0].tolist() if pid]

    def of(self, pid: int) -> tuple[list[int], int]:
        """Return the first few rows that a worker took last and how many it took; none if it is not known."""
        for noted, count, *rows in self._table.tolist():
            if noted == pid:
                return rows[:count], count
        return [], 0


Readers = Sequence[tuple[InHand, Callable[[int], str]]]
"""What loaders read: the rows in hand, and what names a row by its number."""


class _Noted(Dataset[Any]):
    """Rows or numbers by index, noted as workers take them."""

    def __init__(self, rows: Any, in_hand: InHand) -> None:
        self._rows, self._in_hand = rows, in_hand

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._rows[index]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        self._in_hand.note(indices)
        return [self._rows[index] for index in indices]


def each_batch(
    rows: Any,
    collate: Callable[[list[Any]], Any],
    *,
    size: int,
    workers: int,
    timeout: float,
    name: Callable[[int], str],
) -> Iterator[Any]:
    """Yield what `collate` (which workers must be able to pickle) makes of each batch of rows, in order.

    Args:
        rows: anything with a length that gives rows by index.
        collate: makes one value of a list of rows.
        size: rows of a batch.
        workers: loader processes; 0 reads in this one.
        timeout: how many seconds to wait for a batch of the workers; 0 waits for ever.
        name: names a row by its index in messages.

    Raises:
        StalledError: a worker delivers nothing, or was killed.
    """
    in_hand = InHand()
    loader: Any = DataLoader(
        _Noted(rows, in_hand),
        batch_size=size,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=False,
        timeout=timeout if workers else 0,
    )
    with explained(timeout, [(in_hand, name)]):
        yield from loader


def name_of(rows: Any) -> Callable[[int], str]:
    """Return what names a row by its index: by file and row where the rows know them."""
    return (lambda index: str(rows.source(index))) if hasattr(rows, "source") else (lambda index: f"row {index}")


def limit(loader: Any, timeout: float) -> Any:
    """Return a trainer's loader that waits at most so many seconds for a batch of its workers, if it has any.

    Neither transformers nor accelerate has an argument for it; accelerate hands it on where a resumed run skips.
    """
    inner = getattr(loader, "base_dataloader", loader)
    if inner.num_workers:
        inner.timeout = timeout
    return loader


@contextmanager
def explained(timeout: float, readers: Readers) -> Iterator[None]:
    """Turn torch's error for a worker that does not deliver within this context into one message; end all workers.

    Args:
        timeout: what the loaders inside were told.
        readers: what loaders inside read: the rows in hand, and what names a row by its number.

    Raises:
        StalledError: says which worker, how it is, what it read, and what to type.
    """
    ended = threading.Event()
    if timeout:
        threading.Thread(target=_end_stopped, args=(timeout, readers, ended), daemon=True).start()
    try:
        yield
    except (RuntimeError, EOFError, ConnectionError) as error:
        # A signal that ends a worker is the cause of what torch raises, where it waits for a batch just then.
        text = f"{error.__cause__} {error}"
        ours = {pid for in_hand, _ in readers for pid in in_hand.pids} & set(_ended_by_us)
        if ours and not isinstance(error, RuntimeError):
            message = _ended_by_us[ours.pop()]  # the connection broke by which the worker was to hand a batch over
        elif _TIMED_OUT.search(text):
            states = {child.pid: _state(child.pid) for child in _workers()}
            message = _ended_by_us[ours.pop()] if ours else _stalled(timeout, readers, states)
        elif found := _ENDED.search(text):
            message = _killed(found, readers)
        else:
            raise
        _end_workers()
        raise StalledError(message) from error
    finally:
        ended.set()


def _end_stopped(timeout: float, readers: Readers, ended: threading.Event) -> None:
    """Kill a worker that has been stopped for so long: in a thread, because torch's own limit does not see it all.

    A batch that a worker has made lies in memory of which it hands over the descriptor when the batch is taken. Where
    it is stopped by then, torch waits for that without a limit, until the worker is gone.
    """
    tick = min(1.0, timeout / 4)
    seen: Counter[int] = Counter()
    while not ended.wait(tick):
        for pid in {pid for in_hand, _ in readers for pid in in_hand.pids}:
            # Looks are counted, not time: this process may have been stopped as well.
            stopped = _state(pid, parent=os.getpid()) == "T"
            seen[pid] = seen[pid] + 1 if stopped else 0
            if seen[pid] * tick >= timeout:
                _ended_by_us[pid] = _stalled(timeout, readers, {pid: "T"})
                os.kill(pid, signal.SIGKILL)


def _workers() -> list[Any]:
    """Return this process's loader workers: torch makes them daemons, and nothing else here starts any."""
    return [child for child in multiprocessing.active_children() if child.daemon]


def _stalled(timeout: float, readers: Readers, states: Mapping[int, str]) -> str:
    # One that is stopped or hangs in the kernel is the one; where none is, any may be.
    stuck = [pid for pid, state in states.items() if state in ("T", "t", "D")] or list(states)
    said = "; ".join(
        f"pid {pid} is {_STATES.get(states[pid], 'in an unknown state')} ({states[pid]}){_rows(pid, readers)}"
        for pid in stuck[:4]
    )
    more = f"; and {len(stuck) - 4} more" if len(stuck) > 4 else ""
    return (
        f"No batch came from the data loader's workers within --dataloader_timeout {timeout:g} s: {said}{more}. Where "
        "rows need longer (a slow disk, images by URL), type a larger --dataloader_timeout SECONDS; 0 waits for ever. "
        "--dataloader_num_workers 0 (vlm-lora check: --workers 0) reads rows without workers."
    )


def _killed(ended: re.Match[str], readers: Readers) -> str:
    pids = [int(pid) for pid in ended[1].split(",")]
    if pids[0] in _ended_by_us:
        return _ended_by_us[pids[0]]
    how = f"was ended by a signal ({ended[2].strip()})" if ended[2] else "ended without a word"
    why = {
        "Killed": "The kernel kills a process where memory runs out. ",
        "Bus error": "Shared memory (/dev/shm) may be full: docker run --shm-size 16g. ",
    }.get((ended[2] or "").strip(), "")
    return (
        f"The data loader's worker with pid {' and '.join(map(str, pids))} {how}{_rows(pids[0], readers)}. {why}Each "
        "worker holds a processor and the batches that it makes: type a smaller --dataloader_num_workers; 0 (vlm-lora "
        "check: --workers 0) reads rows without workers."
    )


def _rows(pid: int, readers: Readers) -> str:
    for in_hand, name in readers:
        rows, count = in_hand.of(pid)
        if count:
            more = f" and {count - len(rows)} more" if count > len(rows) else ""
            return f"; it last took {', '.join(name(row) for row in rows)}{more}"
    return ""


def state_in_words(pid: int) -> str:
    """Return a process's state, such as `T, stopped, as by SIGSTOP or Ctrl-Z`."""
    state = _state(pid)
    return f"{state}, {_STATES[state]}" if state in _STATES else "which has ended"


def stuck_workers() -> str:
    """Name this process's loader workers that cannot run: stopped or waiting for a disk; empty where all can."""
    states = {child.pid: _state(child.pid) for child in _workers()}
    said = [f"pid {pid} is {_STATES[state]} ({state})" for pid, state in states.items() if state in ("T", "t", "D")]
    return f"of process {os.getpid()}'s loader workers {', '.join(said)}" if said else ""


def _state(pid: int, parent: int | None = None) -> str:
    """Return a process's state as one letter; ? where the system does not say, or it is another parent's."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return "?"
    return stat[0] if parent is None or int(stat[1]) == parent else "?"


def _end_workers() -> None:
    """Kill the workers: at its end Python would wait for one that is stopped, which no other signal ends."""
    main = threading.current_thread() is threading.main_thread()
    # torch's handler would raise an error for each of them, wherever this process is then.
    previous = _without_handler() if main else None
    children = _workers()
    for child in children:
        child.kill()
    for child in children:
        child.join(_LET_GO)
    if main:
        signal.signal(signal.SIGCHLD, previous)


def _without_handler() -> Any:
    """Let ended children be nobody's business, and return whose they were."""
    try:
        return signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    except RuntimeError:
        # Of a worker that has just ended; torch says so once.
        return signal.signal(signal.SIGCHLD, signal.SIG_DFL)
