"""Choices in columns of their own are shown behind a question that does not show them; the answer stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.read_back import read_back
from unit.data.test_hidden_choices import FORMS
from vlm_lora.errors import ConfigError, DataError

ASKED = {"image": "0.png", "question": "Which?"}
SHOWN = "Which?\nA. cup\nB. fork"


@pytest.mark.parametrize("answer", ["B", "(b)", "The answer is B.", "fork", "Cup"])
@pytest.mark.parametrize("choices", FORMS)
def test_every_form_is_shown(choices: dict[str, Any], answer: str, tmp_path: Path) -> None:
    found = read_back([{**ASKED, **choices, "answer": answer}], tmp_path)
    assert found.told == [[["<0.png>", SHOWN], [answer]]]
    assert "shown behind the question where it does not show them" in found.schema.explain()


@pytest.mark.parametrize(
    ("choices", "shown"),
    [
        ({"A": "cup", "B": None, "C": "", "D": "fork"}, "A. cup\nD. fork"),
        ({"choices": {"B": "fork", "D": "cup"}}, "B. fork\nD. cup"),
        ({"choices": [{"label": "D", "text": "x"}, {"label": "B", "text": "y"}]}, "D. x\nB. y"),
        ({"choices": {"label": ["C", "D"], "text": ["x", "y"]}}, "C. x\nD. y"),
        ({"option_2": "second", "option_10": "tenth", "option_1": "first"}, "A. first\nB. second\nC. tenth"),
    ],
)
def test_letters_are_those_of_the_data(choices: dict[str, Any], shown: str, tmp_path: Path) -> None:
    answer = "C" if "option_1" in choices else "D"
    (told,) = read_back([{**ASKED, **choices, "answer": answer}], tmp_path).told
    assert told == [["<0.png>", f"Which?\n{shown}"], [answer]]


def test_a_question_that_shows_them_stays_as_it_is(tmp_path: Path) -> None:
    row = {**ASKED, "question": "A. cup or B. fork?", "choices": ["cup", "fork"], "answer": "B"}
    assert read_back([row], tmp_path).told == [[["<0.png>", "A. cup or B. fork?"], ["B"]]]


@pytest.mark.parametrize("answer", ["E", "A, E", 1, "1"])
def test_an_answer_that_matches_no_choice_is_refused(answer: Any, tmp_path: Path) -> None:
    """A number as well where no row says whether numbers count from 0 or from 1."""
    with pytest.raises(DataError, match=r"'answer' holds .*which says one of 'choices' \(\['cup', 'fork'\]\)"):
        read_back([{**ASKED, "choices": ["cup", "fork"], "answer": answer}], tmp_path)
    rows = [{**ASKED, "choices": ["cup", "fork"], "answer": "B"}] * 100
    found = read_back([*rows, {**rows[0], "answer": answer}], tmp_path)
    assert "row 100 (line 101): The answer is " in found.told[100]


@pytest.mark.parametrize("flags", [{}, {"response_column": "answer"}])
def test_other_words_as_the_answer_make_a_bad_row(flags: dict[str, Any], tmp_path: Path) -> None:
    row = {**ASKED, "choices": ["cup", "fork"], "answer": "a spoon"}
    (told,) = read_back([row], tmp_path, **flags).told
    assert "The answer 'a spoon' is none of the row's choices in 'choices' (['cup', 'fork'])" in told
    shown = {**row, "question": "A cup or a fork?"}
    assert read_back([shown], tmp_path, **flags).told == [[["<0.png>", "A cup or a fork?"], ["a spoon"]]]
    found = read_back([row], tmp_path, ignore_columns=("choices",), **flags)
    assert found.told == [[["<0.png>", "Which?"], ["a spoon"]]]


@pytest.mark.parametrize("answer", ["B. fork", "(B) fork", "fork.", "Fork", "b"])
def test_a_choice_may_be_dressed(answer: str, tmp_path: Path) -> None:
    row = {**ASKED, "choices": ["cup", "fork"], "answer": answer}
    assert read_back([row], tmp_path).told == [[["<0.png>", SHOWN], [answer]]]


def test_choices_are_shown_behind_named_columns_and_the_setting_is_checked(tmp_path: Path) -> None:
    row = {**ASKED, "choices": ["cup", "fork"], "answer": "B"}
    named = read_back([row], tmp_path, prompt_column="question", response_column="answer")
    assert named.told == [[["<0.png>", SHOWN], ["B"]]]
    with pytest.raises(ConfigError, match="choices"):
        read_back([row], tmp_path, choices="hide")


@pytest.mark.parametrize(
    ("numbers", "first", "letters"),
    [([1, 0, 1], 0, "BAB"), (["1", "2", "1"], 1, "ABA"), ([1.0, None, 0.0], 0, "B?A")],
)
def test_numbers_are_read_where_the_rows_say_how_they_count(
    numbers: list[Any], first: int, letters: str, tmp_path: Path
) -> None:
    rows = [{**ASKED, "choices": ["cup", "fork"], "answer": number} for number in numbers]
    found = read_back(rows, tmp_path)
    assert found.schema.answers.first_choice == first
    assert f"count choices from {first}" in found.schema.explain()
    for told, letter in zip(found.told, letters, strict=True):
        assert "There is no value" in told if letter == "?" else told == [["<0.png>", SHOWN], [letter]]


def test_a_number_that_no_choice_has_is_a_bad_row(tmp_path: Path) -> None:
    rows = [{**ASKED, "choices": ["cup", "fork"], "answer": number} for number in [0] * 100 + [1, 2]]
    found = read_back(rows, tmp_path)
    assert found.told[100] == [["<0.png>", SHOWN], ["B"]]
    assert "The answer is the number 2, and the row's choices count from 0 to 1." in found.told[101]


@pytest.mark.parametrize("choices", [["0", "1"], ["1", "0"]])
def test_a_number_that_is_a_choice_stays(choices: list[str], tmp_path: Path) -> None:
    rows = [{**ASKED, "choices": choices, "answer": answer} for answer in ("0", "1")]
    shown = "Which?\nA. {}\nB. {}".format(*choices)
    assert read_back(rows, tmp_path).told == [[["<0.png>", shown], ["0"]], [["<0.png>", shown], ["1"]]]


def test_a_question_that_shows_the_choices_says_what_numbers_are(tmp_path: Path) -> None:
    row = {**ASKED, "question": "(0) cup or (1) fork?", "choices": ["cup", "fork"], "answer": 0}
    assert read_back([row], tmp_path).told == [[["<0.png>", "(0) cup or (1) fork?"], ["0"]]]


def test_numbers_are_refused_where_choices_are_not_to_be_shown(tmp_path: Path) -> None:
    rows = [{**ASKED, "choices": ["cup", "fork"], "answer": number} for number in (0, 1)]
    with pytest.raises(DataError, match=r"'answer' holds 0, which says one of 'choices'"):
        read_back(rows, tmp_path, choices="refuse")


def test_a_choice_that_pandas_calls_missing_is_none(tmp_path: Path) -> None:
    row = {**ASKED, "A": "cup", "B": "fork", "C": "nan", "D": "nan", "hint": "nan", "answer": "B"}
    assert read_back([row], tmp_path).told == [[["<0.png>", SHOWN], ["B"]]]
    told = read_back([{**row, "hint": "One has teeth.", "C": "pan"}], tmp_path).told
    assert told == [[["<0.png>", "Which?\nOne has teeth.\nA. cup\nB. fork\nC. pan"], ["B"]]]
