"""Public training data with keys that nobody reads: each is known to hold nothing, or named with the line to paste."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.public_schemas import MORE_THAN_IS_READ
from support.public_schemas.form import PublicSet, tell
from vlm_lora.data.columns.harmless import holds_nothing
from vlm_lora.data.dataset import ConversationDataset
from vlm_lora.errors import DataError

Row = dict[str, Any]

SHOWN_AS_CHOICES = {"options"}


def opened(one: PublicSet, folder: Path, flag: str = "") -> ConversationDataset:
    """Open it with no other flags than these."""
    return replace(one, flag=flag, telling=()).open(folder)


def read(one: PublicSet, folder: Path, flag: str = "") -> list[list[str]]:
    data = opened(one, folder, flag)
    return [tell(data[number]) for number in range(len(data))]


def told(one: PublicSet) -> list[list[str]]:
    return [list(turns) for turns in one.told]


def pasted(one: PublicSet, folder: Path) -> str:
    """Return the flags that the error asks to type."""
    with pytest.raises(DataError) as caught:
        read(one, folder)
    found = re.search(r"(--ignore_(?:columns|keys) .*)$", str(caught.value))
    assert found is not None, caught.value
    return found[1]


def changed(one: PublicSet, change: Callable[[Row], object]) -> PublicSet:
    assert one.rows is not None
    rows = [deepcopy(dict(row)) for row in one.rows]
    for row in rows:
        change(row)
    return replace(one, rows=rows)


@pytest.mark.parametrize("one", MORE_THAN_IS_READ, ids=lambda one: one.name)
def test_what_it_holds_is_read_known_or_named(one: PublicSet, tmp_path: Path) -> None:
    assert one.unread
    assert one.rows is not None
    if one.telling:
        line = pasted(one, tmp_path / "bare")
        assert shlex.split(line) == ["--ignore_columns", *one.telling]
    else:
        line = ""
        read(one, tmp_path / "bare")
    data = opened(one, tmp_path / "ignored", line)
    assert [tell(data[number]) for number in range(len(data))] == told(one)
    row = one.rows[0]
    left = [column for column, value in row.items() if column not in data.schema.columns and value is not None]
    assert {*left} - {*one.unread} <= SHOWN_AS_CHOICES
    assert all(column in one.telling or holds_nothing(column, row[column]) for column in {*left} & {*one.unread})
    assert all(f"'{column}'" in data.schema.explain() for column in left), "nothing is left out without a word"


@pytest.mark.parametrize("one", MORE_THAN_IS_READ, ids=lambda one: one.name)
def test_an_unknown_column_is_named_and_the_line_works(one: PublicSet, tmp_path: Path) -> None:
    more = changed(one, lambda row: row.update({"see also": "page 2", "remark": {"said": "more"}}))
    line = pasted(more, tmp_path / "bare")
    typed = shlex.split(line)
    assert typed[0] == "--ignore_columns"
    assert {*typed[1:]} == {*one.telling, "see also", "remark"}
    assert read(more, tmp_path / "ignored", line) == told(one)


@pytest.mark.parametrize(
    "one", [o for o in MORE_THAN_IS_READ if o.name in ("the_cauldron", "ALLaVA-4V")], ids=lambda one: one.name
)
def test_an_unknown_key_of_a_turn_is_named_and_the_line_works(one: PublicSet, tmp_path: Path) -> None:
    def add(row: Row) -> None:
        for turn in row.get("texts") or row["conversations"]:
            turn["remark"] = "see page 2"

    more = changed(one, add)
    line = pasted(more, tmp_path / "bare")
    assert "--ignore_keys remark" in line
    assert read(more, tmp_path / "ignored", line) == told(one)
