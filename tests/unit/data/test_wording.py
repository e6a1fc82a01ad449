"""Names and values in messages."""

from __future__ import annotations

from vlm_lora.data.wording import counted, joined, quoted, short


def test_names_are_listed_and_none_is_said() -> None:
    assert (quoted(["a", "b"]), joined(["a", 1])) == ("'a', 'b'", "a, 1")
    assert (quoted([]), joined([])) == ("nothing", "nothing")


def test_one_has_no_s() -> None:
    assert (counted(1, "row"), counted(2, "row"), counted(0, "row")) == ("1 row", "2 rows", "0 rows")
    assert (counted(1, "row has", "rows have"), counted(3, "row has", "rows have")) == ("1 row has", "3 rows have")


def test_long_values_are_cut_off() -> None:
    assert short("x" * 78) == repr("x" * 78)
    assert short("x" * 79) == f"'{'x' * 76}..."
