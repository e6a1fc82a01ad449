"""Public data sets in the forms that people load become the conversations that they mean, or are refused by name."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.public_schemas import BY_NAME, PUBLIC_SETS
from support.public_schemas.form import PublicSet, tell
from vlm_lora.errors import DataError

READ = [one for one in PUBLIC_SETS if one.told]
REFUSED = [one for one in PUBLIC_SETS if one.refused]


def name(one: PublicSet) -> str:
    return one.name


def read(one: PublicSet, folder: Path) -> list[list[str]]:
    data = one.open(folder)
    return [tell(data[number]) for number in range(len(data))]


def shape(value: Any) -> object:
    """Return the nesting of a value: keys and kinds, not what it says."""
    if isinstance(value, dict):
        return tuple((key, shape(inner)) for key, inner in value.items())
    return [shape(value[0])] if isinstance(value, list) and value else type(value).__name__


@pytest.mark.parametrize("one", READ, ids=name)
def test_it_is_read_as_it_is_meant(one: PublicSet, tmp_path: Path) -> None:
    assert read(one, tmp_path) == [list(turns) for turns in one.told]


@pytest.mark.parametrize("one", REFUSED, ids=name)
def test_it_is_refused_by_name(one: PublicSet, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(one.refused)):
        read(one, tmp_path)


def test_other_words_or_another_image_would_be_found(tmp_path: Path) -> None:
    one = BY_NAME["DocVQA"]
    assert one.rows is not None
    told = [list(turns) for turns in one.told]
    for at, changed in enumerate(({"answers": ["1/8/1993"]}, {"image": BY_NAME["PathVQA"].rows[0]["image"]})):  # type: ignore[index]
        other = replace(one, rows=[{**one.rows[0], **changed}])
        assert read(other, tmp_path / str(at)) != told
    assert read(one, tmp_path / "same") == told


def test_there_are_many_and_they_differ() -> None:
    assert len(PUBLIC_SETS) >= 40
    assert len(BY_NAME) == len(PUBLIC_SETS)
    shapes = {repr(shape(dict(one.rows[0]) if one.rows else one.document)) for one in PUBLIC_SETS}
    assert len(shapes) >= 25
    assert all(bool(one.told) != bool(one.refused) for one in PUBLIC_SETS)


def test_at_most_one_flag_is_typed_in_addition_to_what_is_left_out() -> None:
    assert all(one.flag.count("--") <= 1 for one in PUBLIC_SETS)
    both = [one.name for one in PUBLIC_SETS if one.flag and one.ignored and one.told]
    assert both == ["SLAKE", "WebSight", "PubTabNet (html)"]


@pytest.mark.parametrize("one", [one for one in READ if one.telling], ids=name)
def test_what_says_something_and_is_not_read_is_named(one: PublicSet, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        replace(one, telling=()).open(tmp_path)
    typed = shlex.split(str(caught.value).partition(", type ")[2])
    assert sorted(typed) == sorted(one.ignored)


@pytest.mark.parametrize("one", PUBLIC_SETS, ids=name)
def test_what_is_not_read_is_in_the_rows(one: PublicSet) -> None:
    assert {*one.telling} <= {*one.unread}
    assert one.rows is not None or isinstance(one.document, dict | bytes)
    text = repr(one.rows if one.document is None else one.document).replace('\\"', "'").replace('"', "'")
    assert [column for column in one.unread if f"'{column.split('.')[-1]}':" not in text] == []
