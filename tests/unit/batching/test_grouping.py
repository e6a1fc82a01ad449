"""Rows of like length in one batch: every row once, little padding, one length for all processes of a step."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_lora.batching.ordering.batch_order import BatchOrder
from vlm_lora.batching.ordering.grouping import computed_tokens
from vlm_lora.batching.ordering.lengths import RowLengths, drawn_tokens
from vlm_lora.batching.row_table import RowRecord, RowTable, RowTableBuilder, SampleRecord
from vlm_lora.batching.shapes import RowShape
from vlm_lora.data.mixture import Mixture

UNIFORM = (50 + 750 * np.random.default_rng(0).random(4000)).astype(np.int64)
SHORT = (50 + 750 * np.random.default_rng(0).random(4000) ** 2).astype(np.int64)
"""Mostly short: half of the rows have fewer than 240 tokens, and the mean is 300."""


def order_of(lengths: Any, *, grouped: bool = True, batch: int = 8, processes: int = 1, **rest: Any) -> BatchOrder:
    groups = rest.pop("groups", [range(len(lengths))])
    given = {"lengths": lambda epoch: lengths} if grouped else {}
    return BatchOrder(groups, batch_size=batch, processes=processes, **{"seed": 0, **given, **rest})


@pytest.mark.parametrize(
    ("lengths", "most", "random", "ratio"),
    [(UNIFORM, 0.03, (0.38, 0.43), 0.61), (SHORT, 0.02, (0.51, 0.55), 0.48)],
    ids=["uniform", "short"],
)
@pytest.mark.parametrize(("processes", "accumulation"), [(1, 1), (2, 4)])
def test_little_is_padded(
    lengths: Any, most: float, random: tuple[float, float], ratio: float, processes: int, accumulation: int
) -> None:
    split: dict[str, Any] = {"processes": processes, "accumulation": accumulation}
    grouped = computed_tokens(order_of(lengths, **split), lengths, batch_size=8)
    assert 0 < grouped.padding <= most
    shuffled = computed_tokens(order_of(lengths, grouped=False, **split), lengths, batch_size=8)
    assert random[0] < shuffled.padding < random[1], "the control: rows as they come"
    assert grouped.tokens <= ratio * shuffled.tokens
    assert grouped.own == shuffled.own == lengths.sum()


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=90),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 2),
)
def test_each_row_once_and_the_rest_fillers(
    tokens: list[int], batch: int, processes: int, accumulation: int, epoch: int
) -> None:
    lengths, rows, step = np.array(tokens), len(tokens), batch * processes
    order = order_of(lengths, batch=batch, processes=processes, accumulation=accumulation)
    order.set_epoch(epoch)
    indices = list(order)
    plain = order_of(lengths, grouped=False, batch=batch, processes=processes)
    assert len(indices) == len(order) == len(plain)
    assert len(indices) % step == 0
    assert Counter(index for index in indices if index < rows) == Counter(range(rows))
    assert len(indices) - rows < step
    assert all(index >= rows for index in indices[rows:]), "fillers come last: steps count batches from the start"
    dropped = order_of(lengths, batch=batch, processes=processes, accumulation=accumulation, drop_last=True)
    kept = list(dropped)
    assert len(kept) == len(dropped) == rows // step * step
    assert len(set(kept)) == len(kept)
    assert not kept or max(kept) < rows


@given(st.integers(1, 70), st.integers(0, 9), st.integers(0, 3))
def test_one_global_batch_has_the_same_rows_however_it_is_split(rows: int, seed: int, epoch: int) -> None:
    found = []
    for batch, processes, accumulation in ((8, 1, 1), (2, 4, 1), (2, 1, 4), (1, 2, 4)):
        order = order_of(UNIFORM[:rows], batch=batch, processes=processes, accumulation=accumulation, seed=seed)
        order.set_epoch(epoch)
        found.append([index for index in order if index < rows])
    assert found[0] == found[1] == found[2] == found[3]


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_processes_of_a_step_have_neighbouring_lengths(accumulation: int) -> None:
    def share_waited(grouped: bool) -> float:
        """Share of the processes' token time in which they wait for the slowest of their step."""
        order = list(order_of(UNIFORM, grouped=grouped, batch=2, processes=4, accumulation=accumulation))
        longest = UNIFORM[np.array(order) % len(UNIFORM)].reshape(-1, 4, 2).max(axis=2)
        return float(1 - longest.sum() / (longest.max(axis=1).sum() * 4))

    assert share_waited(grouped=True) < 0.02
    assert share_waited(grouped=False) > 0.2, "the control"


def test_the_longest_row_comes_first_and_then_any() -> None:
    def first(epoch: int, seed: int) -> list[int]:
        order = order_of(UNIFORM[:1001], seed=seed, accumulation=2)
        order.set_epoch(epoch)
        return UNIFORM[list(order)[:8]].tolist()

    assert all(max(UNIFORM[:1001]) in first(0, seed) for seed in range(5))
    assert len({tuple(first(1, seed)) for seed in range(5)}) == 5
    assert np.std([np.mean(first(epoch, 0)) for epoch in range(1, 9)]) > 100, "steps are not in order of length"


def test_epochs_and_seeds_differ_and_repeat_and_rows_meet_others() -> None:
    def batches(seed: int, epoch: int) -> list[frozenset[int]]:
        order = order_of(UNIFORM[:803], seed=seed)
        order.set_epoch(epoch)
        indices = list(order)
        return [frozenset(indices[start : start + 8]) for start in range(0, len(indices), 8)]

    assert batches(1, 0) == batches(1, 0)
    assert len({tuple(batches(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    first, second = set(batches(0, 1)), set(batches(0, 2))
    assert len(first & second) < len(first) / 2


def test_few_rows() -> None:
    lengths = np.array([5, 50, 20])
    order = list(order_of(lengths))
    assert len(order) == 8
    assert order[:3] == [1, 2, 0]
    assert set(order[3:]) == {3 + 1, 3 + 2, 3 + 0}, "fillers repeat its rows, the short ones first"
    assert computed_tokens(order, lengths, batch_size=8).tokens == 400
    assert list(order_of(lengths, drop_last=True)) == []


def test_planned_shapes_keep_their_rows_to_themselves() -> None:
    groups = [list(range(50)), list(range(50, 83))]
    order = order_of(UNIFORM[:83], groups=groups, batch=4, processes=2, accumulation=2)
    indices = list(order)
    assert len(indices) == len(order) == 56 + 40
    assert Counter(index for index in indices if index < 83) == Counter(range(83))
    for start in range(0, len(indices), 8):
        step = [index % 83 for index in indices[start : start + 8]]
        assert len({index < 50 for index in step}) == 1
    grouped = computed_tokens(indices, UNIFORM[:83], batch_size=4).tokens
    assert (
        grouped
        < computed_tokens(
            order_of(UNIFORM[:83], grouped=False, groups=groups, batch=4), UNIFORM[:83], batch_size=4
        ).tokens
    )


# Lengths of each epoch


def table_of(*rows: tuple[list[int], tuple[int, ...]]) -> RowTable:
    """Make a table of rows, each the lengths of its samples and which of them its draws are."""
    builder = RowTableBuilder(name="train", layout="page")
    for tokens, drawn in rows:
        shapes = [RowShape(media=(), length=length, supervised=1) for length in tokens]
        builder.add(RowRecord(samples=tuple(SampleRecord(shape=shape) for shape in shapes), drawn=drawn))
    return builder.table()


class Rows:
    """What a mixture asks of its members, as far as lengths go."""

    varies = True
    name = "rows"

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length


def test_rows_that_vary_have_the_lengths_of_the_epochs_draw() -> None:
    table = table_of(([10, 30], (0, 1, 0)), ([7], ()), ([5, 6, 8], (2, 1, 0)))
    lengths = RowLengths(Rows(3), [drawn_tokens(table)])  # type: ignore[arg-type]
    assert [lengths.at(epoch).tolist() for epoch in range(3)] == [[10, 7, 8], [30, 7, 6], [10, 7, 5]]
    with pytest.raises(IndexError):
        lengths.at(3)
    same = RowLengths(Rows(2), [drawn_tokens(table_of(([4], ()), ([9], ())))])  # type: ignore[arg-type]
    assert same.at(0).tolist() == same.at(7).tolist() == [4, 9]


def test_a_mixture_has_the_lengths_of_the_rows_that_the_epoch_sees() -> None:
    twice = table_of(([10, 30], (0, 1, 1, 0)), ([7, 9], (0, 0, 1, 1)))  # two epochs, two draws each
    half = table_of(*(([100 + number], ()) for number in range(6)))
    members: Any = [Rows(2), Rows(6)]
    rows = Mixture(members, [2, 0.5], seed=3)
    lengths = RowLengths(rows, [drawn_tokens(twice), drawn_tokens(half)])
    for epoch, repeats in enumerate(([10, 7, 30, 7], [30, 9, 10, 9])):
        drawn = [100 + rows.find(index, epoch)[1] for index in range(4, 7)]
        assert lengths.at(epoch).tolist() == [*repeats, *drawn]
    assert lengths.at(0)[4:].tolist() != lengths.at(1)[4:].tolist(), "the control: other rows each epoch"


def test_an_epoch_is_grouped_by_its_own_lengths() -> None:
    lengths = [np.arange(1, 41), np.arange(40, 0, -1) ** 2]
    order = BatchOrder(
        [range(40)], batch_size=4, processes=1, seed=0, carries_epoch=True, lengths=lambda epoch: lengths[epoch]
    )
    padding = [computed_tokens(order, lengths[0], batch_size=4).padding]
    order.set_epoch(1)
    indices = list(order)
    assert min(indices) >= 80, "they ask for epoch 1's rows"
    padding.append(computed_tokens(indices, lengths[1], batch_size=4).padding)
    assert max(padding) < 0.2
    still = BatchOrder([range(40)], batch_size=4, processes=1, seed=0, lengths=lambda epoch: lengths[epoch])
    still.set_epoch(1)
    assert computed_tokens(still, lengths[0], batch_size=4).padding < 0.2, "rows that do not vary are epoch 0's"
