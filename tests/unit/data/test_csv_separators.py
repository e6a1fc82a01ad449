"""What parts the values of a CSV file is shown by its first line, and said."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from vlm_lora.data.formats.csv_files import read_csv
from vlm_lora.data.sources.named import open_source
from vlm_lora.errors import DataError

ROWS = [["image", "question", "answer"], ["0.png", "q, with; marks", "1,5"]]


def write(folder: Path, text: str, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def joined(separator: str, *, quote: bool) -> str:
    mark = '"' if quote else ""
    return "\n".join(separator.join(f"{mark}{value}{mark}" for value in row) for row in ROWS) + "\n"


@pytest.mark.parametrize("start", ["", "\n\n", "\ufeff"])
@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_of_the_first_line(
    separator: str, name: str, start: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    table = read_csv(write(tmp_path, start + joined(separator, quote=True), name))
    assert table[0] == dict(zip(*ROWS, strict=True))
    usual = "\t" if name.endswith("tsv") else ","
    assert ("values are parted by" in caplog.text) == (separator != usual)


def test_a_comma_stays_one_where_the_names_have_it(tmp_path: Path) -> None:
    """The control: a semicolon in a name, or in values, parts nothing then."""
    assert read_csv(write(tmp_path, "image,a;b\n0.png,x;y\n"))[0] == {"image": "0.png", "a;b": "x;y"}
    assert read_csv(write(tmp_path, '"a;b"\nx\n'))[0] == {"a;b": "x"}


@pytest.mark.parametrize("separator", [";", "|", ",", "\t"])
def test_a_line_that_names_the_separator(separator: str, tmp_path: Path) -> None:
    """As Excel writes it; lines are counted from the file's start."""
    table = read_csv(write(tmp_path, f"sep={separator}\n" + joined(separator, quote=True)))
    assert table[0] == dict(zip(*ROWS, strict=True))
    with pytest.raises(DataError, match=r"rows\.csv line 3: 1 values, and the header names 2 columns"):
        read_csv(write(tmp_path, f"sep={separator}\na{separator}b\nx\n"))


def test_a_space_behind_each_separator_is_no_part_of_a_value(tmp_path: Path) -> None:
    table = read_csv(write(tmp_path, 'image, question, answer\n0.png, What?, "A kite, red"\n'))
    assert table[0] == {"image": "0.png", "question": "What?", "answer": "A kite, red"}
    kept = read_csv(write(tmp_path, "image,question,answer\n0.png, What?,A kite\n"))
    assert kept[0]["question"] == " What?", "the control: the first line has none"
    assert read_csv(write(tmp_path, "image_name| comment\n0.png| A kite .\n"))[0]["comment"] == "A kite ."


def test_a_line_with_more_values_says_what_parts_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: 4 values.*Values are parted by ';'; one that holds that"):
        read_csv(write(tmp_path, "image;question;answer\n0.png;a;b;c\n"))


@pytest.mark.parametrize("separator", ["|", ";", ",", "\t"])
def test_spaces_on_both_sides_of_each_separator_are_no_part_of_a_value(separator: str, tmp_path: Path) -> None:
    lines = (("image", "question", "answer"), ("0.png", "What is it?", "A kite"), ("1.png", "Q", " "))
    path = write(tmp_path, "".join(f" {separator} ".join(line) + "\n" for line in lines))
    (rows,) = open_source(str(path)).splits.values()
    assert [*rows.columns] == ["image", "question", "answer"]
    assert rows[0] == {"image": "0.png", "question": "What is it?", "answer": "A kite"}
    assert rows[1]["answer"] is None


def test_spaces_in_the_names_alone_are_no_part_of_them(tmp_path: Path) -> None:
    table = read_csv(write(tmp_path, ' image,question ,answer \n0.png,"Q ", a \n'))
    assert table[0] == {"image": "0.png", "question": "Q ", "answer": " a "}, "values stay as they are"
    with pytest.raises(DataError, match="two columns are called 'question'"):
        read_csv(write(tmp_path, "question,question \nq,a\n"))


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.CSV"])
def test_json_that_is_called_a_table_is_read_as_json(name: str, tmp_path: Path) -> None:
    row = {"question": "a, b", "answer": "c"}
    for text in (json.dumps([row, row]), json.dumps([row, row], indent=1), f"{json.dumps(row)}\n{json.dumps(row)}"):
        (rows,) = open_source(str(write(tmp_path, f"\ufeff{text}", name))).splits.values()
        assert [dict(rows[place]) for place in range(len(rows))] == [row, row]
    (rows,) = open_source(str(write(tmp_path, "{id},[b]\n1,2\n".replace(",", "\t"), "rows.tsv"))).splits.values()
    assert rows[0] == {"{id}": "1", "[b]": "2"}, "the control: names in brackets"
