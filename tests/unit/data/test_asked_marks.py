"""A question of the data's own next to boxes or OCR pages is asked, or refused, and never left out without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.read_back import read_back
from vlm_lora.errors import DataError

QUESTION = (
    "Find every object in the picture. Answer with a JSON list of "
    '{"bbox_2d": [x1, y1, x2, y2], "label": "..."}, in pixels.'
)
BOXES = {"bbox": [[2, 3, 10, 5]], "category": ["car"]}
FOUND = '[{"bbox_2d": [2, 3, 12, 8], "label": "car"}]'
ROW: dict[str, Any] = {"image": "0.png", "question": "Find the red car left of the tree.", "objects": BOXES}
PAGE = {"lines": [{"text": "Dear Ann,", "bbox": [2, 2, 20, 8]}]}


def test_a_question_beside_boxes_asks_for_them(tmp_path: Path) -> None:
    found = read_back([ROW, {**ROW, "question": "In <image>, the bus?"}], tmp_path)
    assert found.told == [
        [["<0.png>", "Find the red car left of the tree."], [FOUND]],
        [["In ", "<0.png>", ", the bus?"], [FOUND]],
    ]
    assert "question: column 'question' asks for the boxes" in found.schema.explain()
    assert "not used" not in found.schema.explain()
    named = read_back([{**ROW, "query": "Other?"}], tmp_path, prompt_column="query").told
    assert named == [[["<0.png>", "Other?"], [FOUND]]]
    with pytest.raises(DataError, match=r"'question', 'query'\. Type --prompt_column"):
        read_back([{**ROW, "query": "Other?"}], tmp_path)


def test_boxes_without_a_question_are_asked_for_as_ever(tmp_path: Path) -> None:
    row = {key: value for key, value in ROW.items() if key != "question"}
    assert read_back([row], tmp_path).told == [[["<0.png>", QUESTION], [FOUND]]]
    asked = read_back([ROW], tmp_path, box_prompt="Where?")
    assert asked.told == [[["<0.png>", "Where?"], [FOUND]]]
    assert "not used: 'question'" in asked.schema.explain()
    with pytest.raises(DataError, match="--box_prompt and --prompt_column question both say what is asked"):
        read_back([ROW], tmp_path, box_prompt="Where?", prompt_column="question")


def test_a_question_with_an_answer_does_not_ask_for_boxes(tmp_path: Path) -> None:
    row = {**ROW, "answer": "There."}
    assert read_back([row], tmp_path, boxes_column="objects").told == [[["<0.png>", QUESTION], [FOUND]]]
    assert read_back([row], tmp_path, prompt_column="question").told[0][1] == ["There."]


def test_a_row_without_its_question_is_a_bad_row(tmp_path: Path) -> None:
    fine, bad = read_back([ROW, {**ROW, "question": None}], tmp_path).told
    assert fine[1] == [FOUND]
    assert "rows.jsonl row 1 (line 2): There is no value for the prompt ('question')" in bad


def test_a_question_beside_a_page_must_be_left_out_or_answered(tmp_path: Path) -> None:
    row = {"image": "0.png", "question": "Who is it to?", "text": PAGE}
    with pytest.raises(DataError, match=r"OCR pages \('text'\).*--page_column text, or --prompt_column question"):
        read_back([row], tmp_path)
    for flags in ({"page_column": "text"}, {"tasks": ("reading",)}):
        found = read_back([row], tmp_path, **flags)
        assert found.told[0][1] == ["Dear Ann,"]
        assert "not used: 'question'" in found.schema.explain()
    with pytest.raises(
        DataError, match="Type --page_column text, or --prompt_column question --response_column answer"
    ):
        read_back([{**row, "answer": "Ann"}], tmp_path, tasks=("reading",))
    assert read_back([{"image": "0.png", "text": PAGE}], tmp_path).told[0][1] == ["Dear Ann,"], "the control"
