"""Lists of texts that JSON, Python and numpy write out as one text are read back as they were."""

from __future__ import annotations

import ast
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_lora.data.conversations.texts import written_list

TEXTS = st.lists(st.one_of(st.text(max_size=8), st.text("'\"\\ ,[]/\n", max_size=6)), min_size=1, max_size=4)


@given(TEXTS)
def test_what_is_written_is_read_back(items: list[str]) -> None:
    for text in (repr(items), json.dumps(items), json.dumps(items, ensure_ascii=False)):
        assert written_list(text) == written_list(f" {text}\n") == items


@given(TEXTS)
def test_what_numpy_writes_is_read_back(items: list[str]) -> None:
    assert written_list(str(np.array(items, dtype=object))) == items


def test_long_arrays_wrap_over_lines_and_are_read_up_to_where_numpy_leaves_items_out() -> None:
    items = [f"answer {number}" for number in range(1000)]
    assert written_list(str(np.array(items, dtype=object))) == items
    assert written_list(str(np.array([*items, "one more"], dtype=object))) is None


@pytest.mark.parametrize(
    ("cell", "items"),
    [
        (r'["\ud83d\ude00"]', ["\U0001f600"]),
        (r'["1\/2"]', ["1/2"]),
        (r"['\d']", [r"\d"]),
        ("['a',]", ["a"]),
        ("[\n 'a',\n 'b'\n]", ["a", "b"]),
        ("[]", []),
        ("[ ]", []),
        ("[u'a', 'b']", ["a", "b"]),
        ("['14' '15']", ["14", "15"]),
    ],
)
def test_each_writer_is_read_as_it_means(cell: str, items: list[str]) -> None:
    assert written_list(cell) == items


@pytest.mark.parametrize("cell", ["['14' '15']", "['a', 'b' 'c']", r'["\ud83d\ude00"]'])
def test_python_alone_would_read_other_texts(cell: str) -> None:
    assert written_list(cell) != ast.literal_eval(cell), "the control"


NOT_LISTS: list[object] = ["", "['a' None]", "[1]", "['a', 1]", "['a'", "[f()]", "('a',)", "[" * 5000, None, ["a"]]
GLUED = ["['a', 'b' 'c']", "['a' 'b', 'c']", "['a''b']", "[['a'] ['b']]", "['''a''']", "[b'a']", r"['\x']"]


@pytest.mark.parametrize("cell", NOT_LISTS + GLUED)
def test_what_is_no_list_of_texts_is_none(cell: Any) -> None:
    assert written_list(cell) is None
