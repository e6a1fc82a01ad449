"""The column of images: no shape of an image, and no odd row, turns data into text only without a word."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from support.read_back import read_back
from vlm_lora.data.conversation import Url
from vlm_lora.data.images.values import ImagePlace, read_image_value
from vlm_lora.errors import DataError

ASKED = {"question": "q", "answer": "a"}
READ = [["<0.png>", "q"], ["a"]]
ADDRESS = "https://datasets.example.org/cached/0.jpg?Expires=17"


@pytest.mark.parametrize("column", ["image", "screenshot"])
@pytest.mark.parametrize("value", [{"src": "0.png", "height": 24, "width": 32}, {"url": "0.png"}, {"src": "0.png"}])
def test_objects_with_an_address_are_images(column: str, value: dict[str, Any], tmp_path: Path) -> None:
    assert read_back([{column: value, **ASKED}], tmp_path).told == [READ]
    assert read_back([{column: [value, value], **ASKED}], tmp_path).told == [[["<0.png>", "<0.png>", "q"], ["a"]]]


@pytest.mark.parametrize("column", ["image", "screenshot"])
def test_an_address_in_an_object_is_guarded_as_a_plain_one(column: str, tmp_path: Path) -> None:
    value = {"src": ADDRESS, "height": 24, "width": 32}
    (told,) = read_back([{column: value, **ASKED}], tmp_path).told
    assert "rows.jsonl row 0 (line 1): The image is a URL" in told
    assert "--allow_urls true" in told
    allowed = read_image_value(value, ImagePlace(folder=tmp_path, allow_urls=True))
    assert allowed.source == Url(text=ADDRESS)
    (outside,) = read_back([{column: {"src": "../x.png", "height": 1, "width": 1}, **ASKED}], tmp_path).told
    assert "cannot be opened" in outside or "outside" in outside


def test_bytes_and_path_come_before_an_address(tmp_path: Path) -> None:
    assert read_back([{"image": {"path": "0.png", "url": "1.png"}, **ASKED}], tmp_path).told == [READ]


def test_an_object_with_a_page_s_address_is_no_image(tmp_path: Path) -> None:
    rows = [{"image": "0.png", "source": {"url": "https://example.org/page"}, **ASKED}]
    found = read_back(rows, tmp_path)
    assert (found.schema.image, found.told) == ("image", [READ])
    assert read_back([{"source": {"url": "https://example.org/page"}, **ASKED}], tmp_path).schema.image is None


@pytest.mark.parametrize("value", [391895, [1, 2], {"id": 5}, True, [{"role": "user", "content": "hi"}]])
def test_a_column_called_as_images_that_holds_none_is_an_error(value: Any, tmp_path: Path) -> None:
    rows = [{"image": None, **ASKED}, {"image": value, **ASKED}]
    with pytest.raises(DataError, match=r"'image' is called as images are, and holds none.*--image_column no_pictures"):
        read_back(rows, tmp_path, prompt_column="question", response_column="answer")


def test_the_flag_says_that_there_are_no_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = read_back([{"image": 391895, **ASKED}], tmp_path, image_column="no_pictures")
    assert found.told == [[["q"], ["a"]]]
    assert "image: none, by --image_column no_pictures" in found.schema.explain()
    assert "text only" not in caplog.text, "the user knows"
    named = read_back([{"no_pictures": "0.png", **ASKED}], tmp_path, image_column="no_pictures")
    assert named.told == [READ], "a column of that name is that column"


def test_an_explicit_column_and_other_columns_of_images_win(tmp_path: Path) -> None:
    assert read_back([{"image": 391895, "scan": "0.png", **ASKED}], tmp_path).told == [READ]
    (told,) = read_back([{"image": 391895, **ASKED}], tmp_path, image_column="image").told
    assert "rows.jsonl row 0 (line 1): An image is given as a value of type int" in told


def test_one_odd_row_does_not_hide_a_column_of_unknown_name(tmp_path: Path) -> None:
    rows = [{"screenshot": "0.png", **ASKED} for _ in range(99)]
    found = read_back([*rows, {"screenshot": "0.svg", **ASKED}], tmp_path)
    assert found.schema.image == "screenshot"
    assert found.told[:99] == [READ] * 99
    assert "rows.jsonl row 99 (line 100): The image '0.svg' cannot be opened" in found.told[99]


def test_a_column_where_few_values_name_images_is_none(tmp_path: Path) -> None:
    rows = [{"reference": note, **ASKED} for note in ("0.png", "x", "y", "1.png")]
    with pytest.raises(DataError, match="has the column 'reference'"):
        read_back(rows, tmp_path)
    found = read_back([*rows, {"reference": "2.png", **ASKED}], tmp_path)
    assert found.schema.image == "reference", "the control: three of five"
