"""Names and values in messages."""

from __future__ import annotations

from vlm_lora.data.wording import joined, quoted, short


def test_names_are_listed_and_none_is_said() -> None:
    assert (quoted(["a", "b"]), joined(["a", 1])) == ("'a', 'b'", "a, 1")
    assert (quoted([]), joined([])) == ("nothing", "nothing")


def test_long_values_are_cut_off() -> None:
    assert short("x" * 78) == repr("x" * 78)
    assert short("x" * 79) == f"'{'x' * 76}..."
