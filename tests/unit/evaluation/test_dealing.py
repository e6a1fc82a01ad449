"""Each row is answered once, by one process, next to rows like it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_lora.evaluation.dealing import deal, spread


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(1, 40),
    processes=st.integers(1, 5),
    batch_size=st.integers(1, 9),
    fills=st.booleans(),
    grouped=st.booleans(),
)
def test_each_row_once(count: int, processes: int, batch_size: int, fills: bool, grouped: bool) -> None:
    rows = [2 * number for number in range(count)]
    groups = [rows[::3], rows[1::3], rows[2::3], [1, 3]] if grouped else ()
    dealt = deal(rows, processes=processes, batch_size=batch_size, size_of=lambda row: -row, groups=groups, fills=fills)
    assert len(dealt) == processes
    answered = [row for own in dealt for turn in own if not turn.filler for row in turn.rows]
    assert sorted(answered) == rows
    assert all(len(turn.rows) <= batch_size for own in dealt for turn in own)
    rounds = [len(own) for own in dealt]
    assert max(rounds) - min(rounds) <= (0 if fills else 1)
    if grouped:
        assert all(set(turn.rows) <= set(groups[turn.group]) for own in dealt for turn in own)


def test_rows_are_shared_out_evenly_and_alike() -> None:
    dealt = deal(range(10), processes=2, batch_size=4, size_of=lambda row: row % 5)
    assert [[turn.rows for turn in own] for own in dealt] == [[(4, 9, 3), (1, 6, 0)], [(8, 2, 7), (5,)]]
    # In order, where rows are to be asked for so.
    dealt = deal(range(5), processes=2, batch_size=4)
    assert [[turn.rows for turn in own] for own in dealt] == [[(0, 1, 2)], [(3, 4)]]


def test_a_process_without_rows_takes_part() -> None:
    [first], [second] = deal([7], processes=2, batch_size=4, fills=True)
    assert (first.rows, first.filler) == ((7,), False)
    assert (second.rows, second.filler) == ((7,), True)


def test_samples_are_spread() -> None:
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 64) == spread(3, 0) == [0, 1, 2]
    assert len(set(spread(1000, 64))) == 64
