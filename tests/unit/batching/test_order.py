"""Every row once an epoch, in full batches, on any number of processes."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from vlm_lora.batching.ordering.batch_order import BatchOrder
from vlm_lora.batching.ordering.rows import FillableRows, Filler
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
    assert rows[0] == replace(row, number=0)
    assert rows[1] == Filler(row=replace(row, number=0)), "a filler knows which row it repeats"


class Speaking:
    """Rows that tell the epoch they are read in."""

    def __init__(self, varies: bool = True) -> None:
        self.varies = varies

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Conversation:
        return self.at(index)

    def at(self, index: int, *, epoch: int = 0) -> Conversation:
        said = Turn(role="assistant", parts=(Text(text=f"row {index} in epoch {epoch}"),))
        return Conversation(turns=(said,), source=RowSource(file="rows", row=index))


def said(item: Conversation | Filler) -> str:
    return (item.row if isinstance(item, Filler) else item).turns[-1].text


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_indices_carry_the_epoch_to_the_rows(epoch: int) -> None:
    rows = FillableRows(Speaking())
    order = BatchOrder([range(5)], batch_size=2, processes=2, seed=3, carries_epoch=True)
    order.set_epoch(epoch)
    found = [rows[index] for index in order]
    assert Counter(item.number for item in found if not isinstance(item, Filler)) == Counter(range(5))
    assert Counter(said(row) for row in found if not isinstance(row, Filler)) == Counter(
        f"row {n} in epoch {epoch}" for n in range(5)
    )
    fillers = [row for row in found if isinstance(row, Filler)]
    assert len(fillers) == 3
    assert {said(row).split()[-1] for row in fillers} == {str(epoch)}
    plain = BatchOrder([range(5)], batch_size=2, processes=2, seed=3)
    plain.set_epoch(epoch)
    assert [said(rows[index]).split()[1] for index in plain] == [said(row).split()[1] for row in found]
    assert {said(rows[index]).split()[-1] for index in plain} == {"0"}


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_that_outlive_an_epoch_read_the_next_one(workers: int) -> None:
    order = BatchOrder([range(5)], batch_size=5, processes=1, seed=None, carries_epoch=True)
    loader: DataLoader[Conversation] = DataLoader(
        FillableRows(Speaking()),  # type: ignore[arg-type]
        batch_size=5,
        sampler=order,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=list,
    )
    for epoch in range(3):
        order.set_epoch(epoch)
        assert [said(row) for batch in loader for row in batch] == [f"row {n} in epoch {epoch}" for n in range(5)]


def test_rows_that_do_not_vary_end() -> None:
    rows = FillableRows(Speaking(varies=False))
    assert not rows.varies
    with pytest.raises(IndexError, match="row 10 of 5"):
        rows[10]


@pytest.mark.parametrize("epoch", [0, 2])
def test_one_global_batch_reads_the_same_however_it_is_split(epoch: int) -> None:
    rows, found = FillableRows(Speaking()), []
    for batch, processes in ((4, 1), (2, 2), (1, 4)):
        order = BatchOrder([range(5)], batch_size=batch, processes=processes, seed=1, carries_epoch=True)
        order.set_epoch(epoch)
        found.append([said(rows[index]) for index in order])
    assert found[0] == found[1] == found[2]
    assert all(text.endswith(f"epoch {epoch}") for text in found[0])
