"""Which rows share a pack: none cut, none twice, as few tokens as promised, the same number every epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_lora.batching.packing.order import PackedRows, PackOrder
from vlm_lora.batching.packing.plan import PackPlan, first_fit, halved
from vlm_lora.data.conversation import Conversation, RowSource, Text, Turn
from vlm_lora.errors import ConfigError

UNIFORM = np.random.default_rng(0).integers(50, 801, 4000)
MOSTLY_SHORT = np.clip(np.random.default_rng(1).exponential(150, 4000) + 50, 50, 800).astype(int)


def plan_of(lengths: np.ndarray | list[int], capacity: int = 2048, seed: int | None = 7, **settings: int) -> PackPlan:
    return PackPlan(lambda epoch: lengths, capacity=capacity, seed=seed, **settings)


def padded_randomly(lengths: np.ndarray, batch: int = 8) -> int:
    """Tokens of random batches, each padded to its longest row."""
    order = np.random.default_rng(5).permutation(len(lengths))
    return sum(int(lengths[order[start : start + batch]].max()) * batch for start in range(0, len(order), batch))


@pytest.mark.parametrize(
    ("lengths", "share", "padding"), [(UNIFORM, 0.62, 0.03), (MOSTLY_SHORT, 0.47, 0.02)], ids=["uniform", "short"]
)
def test_packs_of_2048_save_the_padding(lengths: np.ndarray, share: float, padding: float) -> None:
    """Computed tokens where every pack is padded to its capacity, against random batches of eight."""
    plan = plan_of(lengths)
    computed = plan.count * 2048
    assert computed <= share * padded_randomly(lengths)
    assert 1 - lengths.sum() / computed <= padding


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=60),
    capacity=st.integers(30, 90),
    window=st.integers(1, 70),
    seed=st.one_of(st.none(), st.integers(0, 9)),
)
def test_every_row_once_in_packs_that_hold(lengths: list[int], capacity: int, window: int, seed: int | None) -> None:
    plan = plan_of(lengths, capacity, seed, window=window)
    for epoch in (0, 1, 9):
        packs = plan.packs(epoch)
        assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
        assert all(pack and sum(lengths[row] for row in pack) <= capacity for pack in packs)
        assert len(packs) == plan.count


def test_epochs_differ_and_a_plan_says_the_same_again() -> None:
    plan = plan_of(UNIFORM)
    assert plan.packs(3) != plan.packs(4)
    assert plan_of(UNIFORM).packs(3) == plan.packs(3)
    assert plan_of(UNIFORM, seed=8).packs(3) != plan.packs(3)


def test_packs_do_not_come_by_length() -> None:
    """First fit puts long rows into a window's first packs: the order of packs must not show that."""
    packs = plan_of(UNIFORM).packs(0)
    sizes = [len(pack) for pack in packs]
    half = len(sizes) // 2
    assert abs(np.mean(sizes[:half]) - np.mean(sizes[half:])) < 0.5
    in_order = first_fit(range(len(UNIFORM)), UNIFORM, 2048)
    assert np.mean([len(pack) for pack in in_order[half:]]) - np.mean([len(pack) for pack in in_order[:half]]) > 1


def test_first_fit_prefers_the_first_pack() -> None:
    assert first_fit([0, 1, 2, 3, 4], [6, 6, 4, 3, 1], 10) == [[0, 2], [1, 3, 4]]


def test_halved_packs_are_as_many_as_wanted() -> None:
    assert halved([[1, 2, 3, 4], [5]], 4) == [[1], [5], [2, 4], [3]]
    assert halved([[1, 2]], 1) == [[1, 2]]


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no row to pack"):
        plan_of([])


def test_lengths_of_an_epoch_that_does_not_fit_the_promise_are_refused() -> None:
    """More epochs that differ than were announced: the steps would not be those that were said."""
    plan = PackPlan(lambda epoch: [10 if epoch > 50 else 5] * 8, capacity=10, seed=1)
    assert plan.count == 4
    with pytest.raises(ConfigError, match=r"epoch 51 needs more packs than the 4"):
        plan.packs(51)
    assert PackPlan(lambda epoch: [10 if epoch > 50 else 5] * 8, epochs=52, capacity=10, seed=1).count == 8


def order_of(batch_size: int, processes: int, **settings: bool) -> PackOrder:
    return PackOrder(plan_of(UNIFORM[:100]), batch_size=batch_size, processes=processes, **settings)


def test_steps_are_full_and_the_same_however_they_are_split() -> None:
    whole = list(order_of(8, 1))
    assert whole == list(order_of(4, 2)) == list(order_of(1, 8))
    assert len(whole) % 8 == 0
    assert len(whole) == len(order_of(8, 1))
    rows = [row for pack in whole for row in pack]
    assert sorted(row for row in rows if row < 100) == list(range(100))
    fillers = [pack for pack in whole if pack[0] >= 100]
    assert fillers == [(100 + int(UNIFORM[:100].argmin()),)] * len(fillers)
    assert fillers
    dropped = list(order_of(8, 1, drop_last=True))
    assert dropped == whole[: len(dropped)]
    assert len(dropped) == len(whole) - 8


def test_an_epoch_asks_for_its_own_rows_where_they_vary() -> None:
    order = order_of(1, 1, carries_epoch=True)
    order.set_epoch(2)
    order.set_epoch(1)  # epochs do not go back
    assert sorted(row - 400 for pack in order for row in pack) == list(range(100))


def test_an_index_of_several_rows_is_a_pack() -> None:
    turns = (Turn(role="user", parts=(Text(text="a"),)), Turn(role="assistant", parts=(Text(text="b"),)))
    rows = PackedRows([Conversation(turns=turns, source=RowSource(file="a.jsonl", row=row)) for row in (1, 2, 3)])
    (pack, filler, row) = rows.__getitems__([(2, 0), (4,), 1])
    assert [one.source.row for one in pack.rows] == [3, 1]
    assert pack.source == "a.jsonl row 3 + a.jsonl row 1"
    assert filler.rows[0].row.source.row == 2
    assert row.source.row == 2
