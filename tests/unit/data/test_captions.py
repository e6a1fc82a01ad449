"""Images with captions alone are asked for by one question; other answers without a question say what to type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.read_back import read_back
from vlm_lora.errors import ConfigError, DataError

CAPTION: dict[str, Any] = {"image": "0.png", "caption": "A red bar."}
DESCRIBED = [["<0.png>", "Describe the picture."], ["A red bar."]]


@pytest.mark.parametrize("name", ["caption", "captions", "Caption"])
def test_captions_are_asked_for(name: str, tmp_path: Path) -> None:
    found = read_back([{"image": "0.png", name: "A red bar.", "id": 3}], tmp_path)
    assert (found.schema.layout, found.told) == ("caption", [DESCRIBED])
    said = found.schema.explain()
    assert "question: 'Describe the picture.', asked of every row, for captions; --default_prompt asks another" in said
    assert "not used: 'id'" in said


def test_of_several_captions_the_first_is_trained_on(tmp_path: Path) -> None:
    found = read_back([{**CAPTION, "caption": ["A red bar.", "Bars."]}], tmp_path)
    assert (found.told, found.accepted) == ([DESCRIBED], [("A red bar.", "Bars.")])


def test_the_flag_asks_another_question(tmp_path: Path) -> None:
    found = read_back([CAPTION], tmp_path, default_prompt="Say <image> shortly.")
    assert found.told == [[["Say ", "<0.png>", " shortly."], ["A red bar."]]]
    text = {"image": "0.png", "text": "A red bar."}
    asked = read_back([text], tmp_path, default_prompt="Read it.", response_column="text")
    assert asked.told == [[["<0.png>", "Read it."], ["A red bar."]]]
    assert "asked of every row, by --default_prompt" in asked.schema.explain()
    alone = read_back([{**CAPTION, "image": None}], tmp_path, default_prompt="Tell a story.")
    assert alone.told == [[["Tell a story."], ["A red bar."]]]


def test_a_caption_without_an_image_is_a_bad_row(tmp_path: Path) -> None:
    fine, bad = read_back([CAPTION, {**CAPTION, "image": None}], tmp_path).told
    assert fine == DESCRIBED
    assert "rows.jsonl row 1 (line 2): The row has no image, and 'Describe the picture.' asks about one" in bad
    with pytest.raises(DataError, match="no column could be taken as the prompt"):
        read_back([{"caption": "A red bar."}], tmp_path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "a"}, r'--default_prompt "Describe the picture." --response_column COLUMN to ask one question'),
        ({"label": "a"}, r'--prompt_column COLUMN, or --default_prompt "Describe the picture." to ask one question'),
    ],
)
def test_other_answers_without_a_question_say_what_to_type(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        read_back([{"image": "0.png", **row}], tmp_path)


@pytest.mark.parametrize(("other", "value"), [("label", 3), ("label", "b"), ("answer", "b"), ("captions", ["b"])])
def test_a_caption_beside_another_answer_is_never_guessed(other: str, value: Any, tmp_path: Path) -> None:
    row = {**CAPTION, other: value}
    flags = '--default_prompt "Describe the picture." --response_column'
    with pytest.raises(DataError, match=f", or {flags} caption, or {flags} {other} to ask one question of every row"):
        read_back([row], tmp_path)
    said = f"2 columns that could be the response: 'caption', '{other}'. Type --response_column"
    with pytest.raises(DataError, match=said):
        read_back([row], tmp_path, default_prompt="Describe the picture.")
    assert read_back([row], tmp_path, response_column="caption").told == [DESCRIBED]
    typed = read_back([row], tmp_path, default_prompt="Which?", response_column=other)
    assert typed.told == [[["<0.png>", "Which?"], [str(value[0] if isinstance(value, list) else value)]]]


def test_a_column_that_asks_comes_first_and_the_flag_is_then_refused(tmp_path: Path) -> None:
    row = {**CAPTION, "question": "q"}
    assert read_back([row], tmp_path).told == [[["<0.png>", "q"], ["A red bar."]]]
    said = "--default_prompt is for answers without a column of questions, and the data is read as question_answer"
    with pytest.raises(ConfigError, match=said):
        read_back([row], tmp_path, default_prompt="Other?")
