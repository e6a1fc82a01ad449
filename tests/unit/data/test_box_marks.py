"""Marks for boxes that nothing fills in: never trained on as text where they stand for what a row holds elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.read_back import read_back
from vlm_lora.errors import DataError

OBJECTS = {"ref": ["sheep"], "bbox": [[4, 5, 20, 30]]}


def chat(question: str, answer: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "images": ["0.png"]}


def sharegpt(question: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>{question}"}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, "images": ["0.png"]}


def pair(question: str, answer: str) -> dict[str, Any]:
    return {"question": question, "answer": answer, "images": ["0.png"]}


LAYOUTS = [chat, sharegpt, pair]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("question", "answer", "said"),
    [
        ("Find <ref-object>", "<bbox><bbox>", "Turn 1 (user) holds <ref-object>"),
        ("Find the sheep", "<bbox>", "Turn 2 (assistant) holds <bbox>"),
        ("Find the sheep", "The <ref-object> is at <bbox>.", "Turn 2 (assistant) holds <ref-object>, <bbox>"),
        ("What is at <bbox>?", "A sheep.", "Turn 1 (user) holds <bbox>"),
        ("Where?", "<box>", "Turn 2 (assistant) holds <box>"),
    ],
)
def test_marks_beside_their_objects_are_bad_rows(
    layout: Any, question: str, answer: str, said: str, tmp_path: Path
) -> None:
    for column, value in (("regions", OBJECTS), ("Grounding", json.dumps(OBJECTS)), ("bbox", OBJECTS["bbox"])):
        (told,) = read_back([{**layout(question, answer), column: value}], tmp_path).told
        assert f"rows.jsonl row 0 (line 1): {said}, which stands for a value of the column '{column}'" in told


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("answer", ["<bbox><bbox>", "[<bbox>, <bbox>]", "<ref-object> <bbox>."])
def test_an_answer_of_nothing_but_marks_is_a_bad_row_anywhere(layout: Any, answer: str, tmp_path: Path) -> None:
    (told,) = read_back([layout("Where?", answer)], tmp_path).told
    assert "which stands for a value of a column such as 'objects', which the row does not have" in told


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What does <bbox> mean in this HTML?", "A tag <bbox> of its own."),
        ("Where? Answer as <box>x1, y1, x2, y2</box>.", "<box>1, 2, 3, 4</box>"),
        ("Which tag?", "<object>"),
        ("Where?", "<ref>sheep</ref><box>[[1, 2, 3, 4]]</box>"),
    ],
)
def test_other_texts_are_read(layout: Any, question: str, answer: str, tmp_path: Path) -> None:
    (told,) = read_back([layout(question, answer)], tmp_path).told
    assert told == [["<0.png>", question], [answer]]


def test_objects_beside_models_own_boxes_are_left_out_where_that_is_typed(tmp_path: Path) -> None:
    row = {**chat("Where is the <ref>sheep</ref>?", "<box>[[1, 2, 3, 4]]</box>"), "objects": OBJECTS}
    assert "To leave the objects out of all rows, type --ignore_columns objects" in read_back([row], tmp_path).told[0]
    left_out = read_back([row], tmp_path, ignore_columns=("objects",))
    assert left_out.told[0][1] == ["<box>[[1, 2, 3, 4]]</box>"]
    empty = {**chat("What does <bbox> mean?", "A <bbox> of its own."), "objects": {"ref": [], "bbox": []}}
    assert read_back([empty], tmp_path).told[0][1] == ["A <bbox> of its own."]


def test_a_question_that_asks_for_boxes_has_no_marks(tmp_path: Path) -> None:
    boxes = {"bbox": [[1, 2, 3, 4]], "category": ["sheep"]}
    rows = [{"image": "0.png", "question": text, "objects": boxes} for text in ("Find the sheep", "Find <ref-object>")]
    plain, marked = read_back(rows, tmp_path).told
    assert plain[0] == ["<0.png>", "Find the sheep"]
    assert "Turn 1 (user) holds <ref-object>" in marked


@pytest.mark.parametrize("column", ["bbox", "box", "points", "ref", "grounding"])
def test_columns_beside_objects_that_fill_the_marks_are_named(column: str, tmp_path: Path) -> None:
    objects = {"ref": ["sheep"], "bbox": [[4, 5, 20, 22]]}
    row = {**chat("Find <ref-object>", "<bbox>"), "objects": objects}
    plain = read_back([row], tmp_path).told
    assert plain == [[["<0.png>", "Find sheep"], ["[4, 5, 20, 22]"]]]
    beside = {**row, column: [[1, 2, 3, 4]]}
    with pytest.raises(DataError, match=rf"has the column '{column}' .*type --ignore_columns {column}$"):
        read_back([beside], tmp_path)
    assert read_back([beside], tmp_path, ignore_columns=(column,)).told == plain
    closed = {**chat("Where?", "<box>1, 2, 3, 4</box>"), column: [[1, 2, 3, 4]]}
    with pytest.raises(DataError, match=f"has the column '{column}'"):
        read_back([closed], tmp_path)
    opened = {**chat("Where?", "At <bbox>."), column: [[1, 2, 3, 4]]}
    assert f"stands for a value of the column '{column}'" in read_back([opened], tmp_path).told[0], "the control"
