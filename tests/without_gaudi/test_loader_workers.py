"""Loader workers that deliver nothing, and that are killed: one message, and no worker left."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, get_worker_info

from vlm_lora.batching.loading import each_batch, limit, name_of
from vlm_lora.config.run_config import BatchingConfig
from vlm_lora.data.conversation import RowSource
from vlm_lora.errors import ConfigError, StalledError
from vlm_lora.preflight.parallel_map import ParallelMap

# torch's handler for a worker that ended raises wherever this process is just then: also while torch itself opens
# temporary files (torch/utils/data/dataloader.py counts descriptors so), of which one is then nobody's to close.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


class Rows:
    """Numbers; the worker that reads row 5 gets a signal."""

    def __init__(self, number: int) -> None:
        self._signal = number

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        if index == 5 and self._signal:
            assert get_worker_info() is not None
            os.kill(os.getpid(), self._signal)
        return 2 * index

    def source(self, index: int) -> RowSource:
        return RowSource(file="data/train.jsonl", row=index)


def read(number: int, *, workers: int, timeout: float) -> list[int]:
    rows: Any = Rows(number)
    mapped = ParallelMap(workers=workers, timeout=timeout)
    return list(mapped.each(rows.__getitem__, len(rows), "Reading", name_of(rows)))


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_that_come_in_time_come_in_order(workers: int) -> None:
    """The control: a limit alone ends nothing."""
    assert read(0, workers=workers, timeout=60) == [0, 2, 4, 6, 8, 10, 12, 14]


def take_slowly(batches: Iterator[Any]) -> list[Any]:
    """Take the rows when the worker has been stopped with its batches ready."""
    first = next(batches)
    (worker,) = multiprocessing.active_children()
    time.sleep(0.5)  # it makes its batches ahead meanwhile
    os.kill(int(worker.pid or 0), signal.SIGSTOP)
    return [first, *batches]


def test_a_stopped_worker_that_has_made_its_batches_is_named() -> None:
    """torch takes the tensors of such a batch from the worker itself and waits for it without a limit."""
    name = name_of(Rows(0))
    with pytest.raises(
        StalledError, match=r"within --dataloader_timeout 10 s: pid \d+ is stopped, .*row 4, .*row 5\. "
    ):
        take_slowly(each_batch(Rows(0), torch.tensor, size=2, workers=1, timeout=10, name=name))
    assert multiprocessing.active_children() == []


def test_a_stopped_worker_is_named_with_its_rows() -> None:
    with pytest.raises(StalledError) as caught:
        list(each_batch(Rows(signal.SIGSTOP), list, size=2, workers=1, timeout=10, name=lambda index: f"row {index}"))
    message = str(caught.value)
    assert re.search(r"within --dataloader_timeout 10 s: pid \d+ is stopped, as by SIGSTOP or Ctrl-Z \(T\)", message)
    assert "it last took row 4, row 5. " in message
    assert "--dataloader_num_workers 0" in message
    assert multiprocessing.active_children() == [], "Python would wait for it at its end"


def test_a_killed_worker_is_named_with_its_rows() -> None:
    with pytest.raises(StalledError) as caught:
        read(signal.SIGKILL, workers=1, timeout=60)
    message = str(caught.value)
    assert re.match(r"The data loader's worker with pid \d+ was ended by a signal \(Killed\)", message)
    assert "it last took data/train.jsonl row 0, data/train.jsonl row 1, " in message
    assert " and 4 more. The kernel kills a process where memory runs out." in message
    assert "--dataloader_num_workers" in message
    assert multiprocessing.active_children() == []


def test_another_error_of_a_worker_stays_what_it_is() -> None:
    class Bad(Rows):
        def __getitem__(self, index: int) -> int:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        list(each_batch(Bad(0), list, size=2, workers=1, timeout=60, name=str))


class Shard:
    """As accelerate's loader: torch's inside."""

    def __init__(self, loader: Any) -> None:
        self.base_dataloader = loader


@pytest.mark.parametrize(("workers", "timeout"), [(0, 0), (1, 7)])
def test_a_trainers_loader_gets_the_limit_where_it_has_workers(workers: int, timeout: int) -> None:
    """Without workers torch refuses one."""
    rows: Sequence[int] = range(4)
    loader: Any = DataLoader(rows, num_workers=workers)  # type: ignore[arg-type]
    assert limit(Shard(loader), 7).base_dataloader.timeout == timeout
    assert [int(batch) for batch in loader] == [0, 1, 2, 3]


def test_seconds_below_nought_are_refused() -> None:
    assert BatchingConfig().dataloader_timeout == 1800
    with pytest.raises(ConfigError, match=r"--dataloader_timeout -1: .* or 0 to wait for ever"):
        BatchingConfig(dataloader_timeout=-1)
