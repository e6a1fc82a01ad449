"""A packed tar that several processes unpack at once is the same file to all of them."""

from __future__ import annotations

import gzip
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

import pytest

from support.tars import write_chart_tar
from vlm_lora.data import cache_folder
from vlm_lora.data.formats.tar import packed
from vlm_lora.data.sources.named import open_source
from vlm_lora.errors import DataError

LONGEST = 60
"""Seconds that a process waits for the other one."""


def act(
    typed: str, first: bool, same_time: bool, both: Barrier, opened: Event, replaced: Event, said: Callable[[Any], Any]
) -> None:
    """Open the tars; the second process unpacks when the first has its index, which reads when that is done."""
    unpack = packed._unpack
    if not same_time:
        os.utime = lambda *_, **__: None

    def in_turn(*arguments: Any, **options: Any) -> None:
        both.wait(LONGEST)  # both have found nothing unpacked
        assert first or opened.wait(LONGEST)
        unpack(*arguments, **options)

    packed._unpack = in_turn
    try:
        rows = open_source(typed).splits["train"]
        (opened if first else replaced).set()
        assert replaced.wait(LONGEST)
        said([rows[number]["__key__"] for number in range(len(rows))])
    except DataError as error:
        said(str(error))


@pytest.mark.parametrize("same_time", [True, False])
def test_two_processes_unpack_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_time: bool) -> None:
    monkeypatch.setenv(cache_folder.VARIABLE, str(tmp_path / "cache"))
    plain = write_chart_tar(tmp_path / "plain" / "a.tar", [1, 2])
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(plain.read_bytes()))
    context = multiprocessing.get_context("spawn")
    both, opened, replaced = context.Barrier(2), context.Event(), context.Event()
    heard = [context.SimpleQueue() for _ in range(2)]
    processes = [
        context.Process(target=act, args=(str(path), not number, same_time, both, opened, replaced, queue.put))
        for number, queue in enumerate(heard)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(2 * LONGEST)
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = (queue.get() for queue in heard)
    assert second == ["000001", "000002"]
    if same_time:
        assert first == second
    else:  # the control: with the time at which each was written, the first one's index is of another file
        assert "was changed while it was in use" in first
