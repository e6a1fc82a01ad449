"""`<image>` in a question that is set for all rows is the place of the images; in what rows hold it stays text."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from support.read_back import read_back
from vlm_lora.config.sources import parse
from vlm_lora.errors import ConfigError

CAPTION: dict[str, Any] = {"image": "0.png", "caption": "A <image>."}
BOXES: dict[str, Any] = {"image": "0.png", "objects": {"bbox": [[2, 3, 10, 5]], "category": ["car"]}}
PAGE = {"image": "0.png", "text": {"lines": [{"text": "an <image>, {box}", "bbox": [2, 2, 20, 8]}]}}


@pytest.mark.parametrize(
    ("typed", "parts"),
    [
        ("<image>\nDescribe.", ["<0.png>", "\nDescribe."]),
        ("Describe <image>", ["Describe ", "<0.png>"]),
        ("In <image>, what?", ["In ", "<0.png>", ", what?"]),
        ("<image>", ["<0.png>"]),
        ("Describe.", ["<0.png>", "Describe."]),
    ],
)
def test_one_mark_in_a_flag_is_the_place(typed: str, parts: list[str], tmp_path: Path) -> None:
    assert read_back([CAPTION], tmp_path, default_prompt=typed).told == [[parts, ["A <image>."]]]
    assert read_back([BOXES], tmp_path, box_prompt=typed).told[0][0] == parts


def test_all_of_a_row_s_images_stand_at_the_mark(tmp_path: Path) -> None:
    rows = [{"images": ["0.png", "1.png"], "caption": "a"}, {"images": [], "caption": "a"}]
    fine, bad = read_back(rows, tmp_path, default_prompt="In <image>?").told
    assert fine[0] == ["In ", "<0.png>", "<1.png>", "?"]
    assert "row 1 (line 2): The row has no image, and 'In <image>?' asks about one. " in bad
    assert "type --default_prompt without <image>" in bad
    alone = read_back(rows, tmp_path, default_prompt="In <image>?", image_column="no_pictures").told
    assert alone == [[["In <image>?"], ["a"]]] * 2, "a word, as in any other text"


@pytest.mark.parametrize("flag", ["default_prompt", "box_prompt"])
def test_more_than_one_mark_in_a_flag_is_refused(flag: str) -> None:
    with pytest.raises(ConfigError, match=rf"--{flag} '<image> or <image>\?': .*once at most\. Type one, or none"):
        parse([f"--{flag}", "<image> or <image>?"], environ={})
    assert getattr(parse([f"--{flag}", "<image>?"], environ={}).data, flag) == "<image>?"


@pytest.mark.parametrize(
    ("question", "parts"),
    [
        ("<image>\nWhere is '{text}'?", ["<0.png>", "\nWhere is 'an <image>, {box}'?"]),
        ("Where is '{text}' in <image>?", ["Where is 'an <image>, {box}' in ", "<0.png>", "?"]),
        ("Where is '{text}'?", ["<0.png>", "Where is 'an <image>, {box}'?"]),
    ],
)
def test_one_mark_in_a_task_is_the_place_and_the_page_s_own_text_is_none(
    question: str, parts: list[str], tmp_path: Path
) -> None:
    with (tmp_path / "tasks.csv").open("w", encoding="utf-8", newline="") as stream:
        rows = (("task", "input_type", "output_type", "question"), ("find", "[lines, image]", "box", question))
        csv.writer(stream).writerows(rows)
    found = read_back([PAGE], tmp_path, task_file=str(tmp_path / "tasks.csv"))
    assert found.told == [[parts, ["[[2, 2, 20, 8]]"]]]
