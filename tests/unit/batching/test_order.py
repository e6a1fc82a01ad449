"""Every row once an epoch, in full batches, on any number of processes."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_lora.batching.order import BatchOrder, FillableRows, Filler
from vlm_lora.data.conversation import Conversation, RowSource, Text, Turn

GROUPS = st.lists(st.integers(1, 30), min_size=1, max_size=4)


def grouped(sizes: list[int]) -> list[list[int]]:
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]


@given(GROUPS, st.integers(1, 5), st.integers(1, 4), st.one_of(st.none(), st.integers(0, 9)), st.integers(0, 3))
def test_each_row_once_and_the_rest_fillers(
    sizes: list[int], batch: int, processes: int, seed: int | None, epoch: int
) -> None:
    order = BatchOrder(grouped(sizes), batch_size=batch, processes=processes, seed=seed)
    order.set_epoch(epoch)
    indices, rows = list(order), sum(sizes)
    assert len(indices) == len(order)
    assert len(indices) % (batch * processes) == 0
    assert Counter(index for index in indices if index < rows) == Counter(range(rows))
    group_of = {index: number for number, group in enumerate(grouped(sizes)) for index in group}
    for start in range(0, len(indices), batch * processes):
        step = indices[start : start + batch * processes]
        assert len({group_of[index % rows] for index in step}) == 1, "one shape for all processes of a step"


@given(st.integers(1, 40), st.integers(0, 9), st.integers(0, 3))
def test_one_global_batch_has_the_same_rows_however_it_is_split(rows: int, seed: int, epoch: int) -> None:
    found = []
    for batch, processes in ((8, 1), (2, 4), (4, 2), (1, 8)):
        order = BatchOrder([range(rows)], batch_size=batch, processes=processes, seed=seed)
        order.set_epoch(epoch)
        found.append(list(order))
    assert found[0] == found[1] == found[2] == found[3]


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        made = BatchOrder([range(50)], batch_size=5, processes=1, seed=seed)
        made.set_epoch(epoch)
        return list(made)

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_an_epoch_is_not_set_back() -> None:
    """accelerate 1.10's loader for a resumed epoch starts at 0 again."""
    order = BatchOrder([range(50)], batch_size=5, processes=1, seed=1)
    order.set_epoch(2)
    before = list(order)
    order.set_epoch(0)
    assert list(order) == before


@pytest.mark.parametrize(("rows", "kept"), [(7, 4), (8, 8), (3, 0)])
def test_drop_last_drops_instead(rows: int, kept: int) -> None:
    order = BatchOrder([range(rows)], batch_size=2, processes=2, seed=0, drop_last=True)
    assert len(list(order)) == len(order) == kept


def test_fillable_rows() -> None:
    row = Conversation(
        turns=(Turn(role="user", parts=(Text(text="?"),)), Turn(role="assistant", parts=(Text(text="!"),))),
        source=RowSource(file="rows", row=0),
    )
    rows = FillableRows([row])
    assert len(rows) == 1
    assert rows[0] is row
    assert rows[1] == Filler(row=row)
