"""Tars on one process and two: equal steps, each sample once; and several processes that index one tar at once."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from support.tars import write_chart_tar
from vlm_lora.batching.ordering.batch_order import BatchOrder
from vlm_lora.batching.ordering.rows import FillableRows, Filler
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.dataset import load_splits
from vlm_lora.data.sources.named import open_source

BATCH = 2


def count_rows(name: str) -> tuple[int, str]:
    """Open tars in a process of its own; return the number of rows and the last key."""
    rows = open_source(name).splits["train"]
    return len(rows), str(rows[len(rows) - 1]["__key__"])


@pytest.mark.parametrize("sizes", [(1, 5, 3), (4, 4), (7,)])
@pytest.mark.parametrize("epoch", [0, 1])
def test_equal_steps_and_each_sample_once(tmp_path: Path, sizes: tuple[int, ...], epoch: int) -> None:
    """Shards of different sizes, which a division of shards among processes would turn into different steps."""
    first = 0
    for shard, size in enumerate(sizes):
        write_chart_tar(tmp_path / f"train-{shard:04d}.tar", range(first, first + size))
        first += size
    config = DataConfig(dataset_name=f"{tmp_path}/*.tar", validation_fraction=0.0)
    rows = load_splits(config, need_train=True, need_validation=False).train
    assert rows is not None
    assert len(rows) == sum(sizes)
    steps: dict[int, list[list[str | None]]] = {}
    for processes in (1, 2):
        order = BatchOrder([range(len(rows))], batch_size=BATCH * 2 // processes, processes=processes, seed=3)
        order.set_epoch(epoch)
        fillable = FillableRows(rows)
        taken = [fillable[index] for index in order]
        keys = [None if isinstance(row, Filler) else row.source.key for row in taken]
        assert Counter(key for key in keys if key) == Counter(f"{n:06d}" for n in range(sum(sizes)))
        assert len(keys) % (BATCH * 2) == 0
        steps[processes] = [keys[start : start + BATCH * 2] for start in range(0, len(keys), BATCH * 2)]
    assert steps[1] == steps[2], "one global batch has the same samples on one process and on two"


def test_an_epochs_place_is_a_number_of_rows(tmp_path: Path) -> None:
    """Going on in the middle of an epoch reads the rest alone, by offset: nothing has to be read to get there."""
    tar = write_chart_tar(tmp_path / "train.tar", range(9))
    rows = open_source(str(tar)).splits["train"]
    order = list(BatchOrder([range(9)], batch_size=3, processes=1, seed=5))
    whole = [rows[index]["__key__"] for index in order]
    again = open_source(str(tar)).splits["train"]
    assert [again[index]["__key__"] for index in order[4:]] == whole[4:]


def test_several_processes_may_index_one_tar_at_once(tmp_path: Path) -> None:
    write_chart_tar(tmp_path / "train-0.tar", range(40))
    write_chart_tar(tmp_path / "train-1.tar", range(40, 50))
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(count_rows, [f"{tmp_path}/*.tar"] * 8))
    assert found == [(50, "000049")] * 8
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("train-0.tar", "train-0.tar.index.json", "train-1.tar", "train-1.tar.index.json")
    ]
