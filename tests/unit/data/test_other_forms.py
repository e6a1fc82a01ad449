"""Data of other forms: what is refused by name, what is read although it looks alike, and what several columns say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.public_schemas import BY_NAME
from support.read_back import read_back
from vlm_lora.errors import DataError

IMAGE = {"image": "0.png"}
PAIR = {**IMAGE, "question": "Which?", "answer": "cup"}
BOX = [1, 2, 3, 4]
TOLD = [[["<0.png>", "Which?"], ["cup"]]]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**IMAGE, "question": "q", "chosen": "a", "rejected": "b"}, "--response_column chosen"),
        ({**IMAGE, "Chosen": [{"role": "user", "content": "q"}], "rejected": "b"}, "--messages_column Chosen"),
        ({**IMAGE, "words": ["a"], "ner_tags": [0], "bboxes": [BOX]}, "a tag for each word"),
        ({**PAIR, "bbox": BOX}, "type --ignore_columns bbox$"),
        ({**PAIR, "bboxes": [BOX, BOX]}, "'bboxes' holds a box for each row"),
        ({**IMAGE, "caption": "a cup", "bounding_box": [0.1, 0.2, 0.3, 0.4]}, "'bounding_box' holds a box"),
        ({**IMAGE, "label": "cup", "points": [{"x": 1, "y": 2}]}, "'points' holds points"),
        ({**IMAGE, "html": ["<tr>", "</tr>"]}, "'html' holds a table in pieces"),
        ({**IMAGE, "regions": [{"phrase": "a cup", "x": 1}]}, "'regions' holds several questions or texts"),
        ({"qas": [{"question": "q", "answer": "a"}]}, "'qas' holds several .* and no image"),
    ],
)
def test_another_form_is_refused_by_name(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        read_back([row], tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        {"bbox": BOX},
        {"bbox": None},
        {"bbox": "the left one"},
        {"points": 3},
        {"ner_tags": [0, 1]},
        {"html": ["<tr>"]},
        {"chosen": "yes"},
    ],
)
def test_what_looks_alike_is_read_where_it_is_left_out(other: dict[str, Any], tmp_path: Path) -> None:
    assert read_back([{**PAIR, **other}], tmp_path, ignore_columns=tuple(other)).told == TOLD


def test_the_preferred_answer_can_be_trained_on(tmp_path: Path) -> None:
    row = {**IMAGE, "question": "Which?", "chosen": "cup", "rejected": "fork"}
    with pytest.raises(DataError, match="--response_column chosen --ignore_columns rejected"):
        read_back([row], tmp_path)
    assert read_back([row], tmp_path, response_column="chosen", ignore_columns=("rejected",)).told == TOLD


def test_questions_and_answers_in_lists_are_turns(tmp_path: Path) -> None:
    row = {**IMAGE, "questions": ["Which?", "And?"], "answers": ["cup", 2]}
    found = read_back([row, {**row, "answers": ["cup"]}], tmp_path)
    assert found.told[0] == [["<0.png>", "Which?"], ["cup"], ["And?"], ["2"]]
    assert "are 2 and its answers in 'answers' 1" in found.told[1]
    assert "with the answer at its place in 'answers'" in found.schema.explain()


@pytest.mark.parametrize(("column", "flags"), [("hint", {}), ("passage", {"context_column": "passage"})])
def test_what_continues_questions_in_a_list_stands_behind_the_first(
    column: str, flags: dict[str, Any], tmp_path: Path
) -> None:
    row = {**IMAGE, "question": ["Which?", "And?"], "answer": ["cup", "fork"], column: "Look left."}
    told = read_back([row, {**row, column: None}, {**row, column: ["a", "b"]}], tmp_path, **flags).told
    assert told[0] == [["<0.png>", "Which?\nLook left."], ["cup"], ["And?"], ["fork"]]
    assert told[1] == [["<0.png>", "Which?"], ["cup"], ["And?"], ["fork"]]
    assert f"The value of the context ('{column}') is of type list" in told[2]


def test_choices_of_several_questions_are_shown_by_them_or_refused(tmp_path: Path) -> None:
    row = {**IMAGE, "question": ["Which?", "And?"], "answer": ["cup", "fork"], "choices": ["cup", "fork"]}
    for choices in (["cup", "fork"], [["cup", "fork"], ["a", "b"]]):
        (told,) = read_back([{**row, "choices": choices}], tmp_path).told
        assert "The row has 2 questions, and choices in 'choices'" in told
        assert "type --ignore_columns choices to leave them out" in told
    (left_out,) = read_back([row], tmp_path, ignore_columns=("choices",)).told
    assert left_out == [["<0.png>", "Which?"], ["cup"], ["And?"], ["fork"]]
    (shown,) = read_back([{**row, "question": ["A cup or a fork?", "And?"]}], tmp_path).told
    assert shown == [["<0.png>", "A cup or a fork?"], ["cup"], ["And?"], ["fork"]]


def test_one_question_in_a_list_is_read_as_one(tmp_path: Path) -> None:
    row = {**IMAGE, "question": ["Which?"], "answer": ["B"], "choices": ["cup", "fork"], "hint": "Look."}
    found = read_back([row], tmp_path)
    assert found.told == [[["<0.png>", "Which?\nLook.\nA. cup\nB. fork"], ["B"]]]
    found = read_back([{**row, "answer": [["fork", "Fork"]]}, {**row, "answer": []}], tmp_path)
    assert found.accepted[0] == ("fork", "Fork")
    assert "are 1 and its answers in 'answer' 0" in found.told[1]


def test_answers_by_several_people_are_no_choices(tmp_path: Path) -> None:
    others = {"answer_1": "cup", "answer_2": "mug", "answer_3": "cup"}
    with pytest.raises(DataError, match=r"'answer_1'.*'answer_2'.*type --ignore_columns answer_1 answer_2 answer_3"):
        read_back([{**PAIR, **others}], tmp_path)
    assert read_back([{**PAIR, **others}], tmp_path, ignore_columns=tuple(others)).told == TOLD
    # The control: choices by letter are.
    (told,) = read_back([{**PAIR, "answer_a": "cup", "answer_b": "mug"}], tmp_path).told
    assert told == [["<0.png>", "Which?\nA. cup\nB. mug"], ["cup"]]


def test_donuts_json_is_its_parse(tmp_path: Path) -> None:
    texts = [json.dumps({"gt_parse": {"name": "Zoë"}, "meta": {"v": 1}}), '{"other": 1}', json.dumps({"gt_parse": [1]})]
    rows = [{**IMAGE, "ground_truth": text} for text in texts]
    found = read_back(rows, tmp_path, default_prompt="Read it.")
    assert found.told[0] == [["<0.png>", "Read it."], ['{"name": "Zoë"}']]
    assert "no JSON object with gt_parse" in found.told[1]
    assert found.told[2] == [["<0.png>", "Read it."], ["[1]"]]
    # The control: other JSON is an answer as it is.
    (told,) = read_back([rows[1]], tmp_path, default_prompt="Read it.").told
    assert told[1] == ['{"other": 1}']


def test_the_question_that_holds_the_other_is_asked(tmp_path: Path) -> None:
    row = {**IMAGE, "question": "Which?", "query": "Hint: name it.\nQuestion: Which?", "answer": "cup"}
    found = read_back([row], tmp_path)
    assert found.told == [[["<0.png>", "Hint: name it.\nQuestion: Which?"], ["cup"]]]
    assert "prompt: column 'query', which holds the text of 'question'" in found.schema.explain()
    with pytest.raises(DataError, match="2 columns that could be the prompt"):
        read_back([row, {**row, "question": "What else?"}], tmp_path)
    with pytest.raises(DataError, match="2 columns that could be the prompt"):
        read_back([{**row, "query": "Which?"}], tmp_path)


def test_an_image_goes_before_the_address_that_it_is_from(tmp_path: Path) -> None:
    found = BY_NAME["InfographicVQA"].open(tmp_path)
    assert found.schema.image == "image"
    assert "'image_url' says where they were" in found.schema.explain()
    with pytest.raises(DataError, match="2 columns that could be the image"):
        read_back([{**PAIR, "image_url": "https://example.com/a.png"}], tmp_path)


def test_a_text_is_the_answer_where_a_question_is_typed(tmp_path: Path) -> None:
    row = {**IMAGE, "text": "cup"}
    assert read_back([row], tmp_path, default_prompt="Which?").told == TOLD
    labelled = {**row, "label": "fork"}
    found = read_back([labelled], tmp_path, default_prompt="Which?", ignore_columns=("text",))
    assert found.told[0][1] == ["fork"]
    with pytest.raises(DataError, match="--default_prompt"):
        read_back([row], tmp_path)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"images": [{"id": 1}], "annotations": [{"caption": "a"}]}, "captions in COCO's form"),
        ({"images": [{"id": 1}], "annotations": [{"bbox": BOX}], "categories": []}, "boxes in COCO's form"),
        ({"images": [{"id": 1}], "annotations": [{"keypoints": []}]}, "annotations in COCO's form"),
        ({"images": [{"sentences": []}], "dataset": "coco"}, "captions in Karpathy's form"),
        ({"questions": [{"question": "q", "question_id": 1}], "info": {}}, "whose answers are in another file"),
        ({"annotations": [{"answers": [], "question_id": 1}]}, "whose questions are in another file"),
        ({"one": [PAIR], "two": [PAIR]}, "an object with the keys 'one', 'two'"),
        ({"name": "x", "rows": [PAIR]}, "an object with the keys 'name', 'rows'"),
        ({"rows": [1, 2]}, "an object with the keys 'rows'"),
        ({"rows": []}, "an object with the keys 'rows'"),
    ],
)
def test_a_document_without_rows_is_refused(document: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_back(path, tmp_path)


@pytest.mark.parametrize(
    "document",
    [
        {"info": {"version": 1}, "questions": [PAIR]},
        {"version": "1", "data": [PAIR], "license": [1]},
        {"rows": [PAIR]},
    ],
)
def test_the_only_list_of_a_document_is_its_rows(document: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
    assert read_back(path, tmp_path).told == TOLD
