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
        (
            {"option_2": "second", "option_10": "tenth", "option_3": "third", "option_1": "first"},
            "A. first\nB. second\nC. third\nJ. tenth",
        ),
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
    rows = [{**ASKED, "choices": ["cup", "fork"], "answer": "B"}] * 100
    found = read_back([*rows, {**rows[0], "answer": answer}], tmp_path)
    if "E" in str(answer):
        assert f"row 100 (line 101): The answer '{answer}' is none of the row's choices" in found.told[100]
        return
    assert "row 100 (line 101): The answer is " in found.told[100]
    with pytest.raises(DataError, match=r"'answer' holds .*which says one of 'choices' \(\['cup', 'fork'\]\)"):
        read_back([{**ASKED, "choices": ["cup", "fork"], "answer": answer}], tmp_path)


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


def shown_of(choices: Any, answer: Any, folder: Path, **settings: Any) -> Any:
    """Return what is shown behind the question, or the row's error."""
    in_columns = isinstance(choices, dict) and "A" in choices
    row = {**ASKED, **(choices if in_columns else {"choices": choices}), "answer": answer}
    (told,) = read_back([row], folder, **settings).told
    return told if isinstance(told, str) else told[0][1].removeprefix("Which?\n")


EMPTY: tuple[Any, ...] = ("", None, [], " ")


@pytest.mark.parametrize(
    ("choices", "shown"),
    [
        *(([*"x", empty, *"yz"], "A. x\nC. y\nD. z") for empty in EMPTY),
        (["int", "null", "str", "bool"], "A. int\nB. null\nC. str\nD. bool"),
        (["[]", "{}", "null", False], "A. []\nB. {}\nC. null\nD. False"),
        (["x", "y", "z", "w", "", None], "A. x\nB. y\nC. z\nD. w"),
        ({"A": "x", "B": "null", "C": "y", "D": "z"}, "A. x\nB. null\nC. y\nD. z"),
        ('["x", "", "y", "z"]', "A. x\nC. y\nD. z"),
        ("['x', '', 'y', 'z']", "A. x\nC. y\nD. z"),
        ("x||y|z", "A. x\nC. y\nD. z"),
        ("A. x B. C. y D. z", "A. x\nC. y\nD. z"),
        ("Options: A. vitamin C. B. iron C. y D. z", "A. vitamin C.\nB. iron\nC. y\nD. z"),
        ([{"text": "x"}, {"text": None}, {"text": "y"}, {"text": "z"}], "A. x\nC. y\nD. z"),
        ([{"label": "A", "text": ""}, {"label": "D", "text": "z"}, {"label": "C", "text": "y"}], "D. z\nC. y"),
    ],
)
def test_an_empty_choice_keeps_its_letter(choices: Any, shown: str, tmp_path: Path) -> None:
    answer = "D" if "D. " in shown else "C"
    assert shown_of(choices, answer, tmp_path) == shown
    refused = "'B'" if "B. " not in shown else "'E'"
    (told,) = read_back([{**ASKED, "choices": choices, "answer": refused.strip("'")}], tmp_path).told
    assert f"The answer {refused} is none of the row's choices" in told


def test_an_empty_choice_keeps_its_number(tmp_path: Path) -> None:
    rows = [{**ASKED, "choices": ["x", "", "y"], "answer": number} for number in (0, 2, 1)]
    found = read_back(rows, tmp_path)
    assert found.told[:2] == [[["<0.png>", "Which?\nA. x\nC. y"], [letter]] for letter in "AC"]
    assert "The answer is the number 1, and the row's choice at its place is empty" in found.told[2]
    columns = [{**ASKED, "opt1": "x", "opt2": None, "opt3": "y", "answer": number} for number in (1, 3)]
    assert read_back(columns, tmp_path).told == found.told[:2]


@pytest.mark.parametrize(
    ("choices", "shown"),
    [
        ("{'A': 'cup', 'B': \"Ann's, fork\"}", "A. cup\nB. Ann's, fork"),
        ("[{'label': 'A', 'text': 'cup'}, {'label': 'B', 'text': 'fork'}]", "A. cup\nB. fork"),
        ("[{'label': 'C', 'text': 'a } {b'}\n {'label': 'B', 'text': 'fork'}]", "C. a } {b\nB. fork"),
        (
            "{'text': array(['cup', 'fork'],\n      dtype=object), 'label': array(['A', 'B'], dtype=object)}",
            "A. cup\nB. fork",
        ),
        ("[1.5, None, 2]", "A. 1.5\nC. 2"),
        ("[1.5, nan, np.float64(2.5)]", "A. 1.5\nC. 2.5"),
        ("[1.5 2.5]", "A. 1.5\nB. 2.5"),
        ("('cup', 'fork')", "A. cup\nB. fork"),
        ("['cup' 'fork']", "A. cup\nB. fork"),
    ],
)
def test_what_python_and_numpy_write_is_read(choices: str, shown: str, tmp_path: Path) -> None:
    assert shown_of(choices, shown[0], tmp_path) == shown


@pytest.mark.parametrize("choices", ["{'A': cup, 'B': fork}", "['cup' None]", "[open('x')]", "{'cup', 'fork'}"])
def test_what_cannot_be_read_is_no_choice(choices: str, tmp_path: Path) -> None:
    assert "they are no list that can be read (write it as JSON)" in shown_of(choices, "A", tmp_path)
    assert shown_of(choices, "A", tmp_path, ignore_columns=("choices",)) == "Which?"


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        (["1.png", "2.png"], "they are images"),
        ([{"label": "A", "image": "1.png"}, {"label": "B", "image": "2.png"}], "they hold images"),
        ([{"text": "cup", "image": "1.png"}, {"text": "fork"}], "they hold images"),
        ([["cup"], ["fork"]], "they are lists of their own"),
        ({"label": ["A", "B"], "text": ["cup"]}, "have different lengths"),
        ({"cup": "to drink", "fork": "to eat"}, "their keys 'cup', 'fork' are neither"),
        ([{"colour": "red"}, {"colour": "blue"}], "an object with 'colour' has no text"),
    ],
)
@pytest.mark.parametrize("answer", ["A", "cup"])
def test_choices_that_cannot_be_shown_make_a_bad_row(choices: Any, said: str, answer: str, tmp_path: Path) -> None:
    told = shown_of(choices, answer, tmp_path)
    assert said in told
    assert "type --ignore_columns" in told
    assert shown_of(choices, answer, tmp_path, ignore_columns=("choices",)) == "Which?"


def test_names_of_images_that_the_question_shows_are_texts(tmp_path: Path) -> None:
    row = {**ASKED, "question": "Which, 1.png or 2.png?", "choices": ["1.png", "2.png"], "answer": "2.png"}
    assert read_back([row], tmp_path).told == [[["<0.png>", "Which, 1.png or 2.png?"], ["2.png"]]]


def test_keys_of_choices_are_read_or_named(tmp_path: Path) -> None:
    choices = [{"label": "A", "text": "cup", "explanation": "round"}, {"label": "B", "text": "fork", "id": 7}]
    assert "'explanation' of them is not read (--ignore_keys explanation" in shown_of(choices, "B", tmp_path)
    assert shown_of(choices, "B", tmp_path, ignore_keys=("explanation",)) == "A. cup\nB. fork"
    known = [{"text": "cup", "is_correct": False, "id": 3}, {"text": "fork", "is_correct": True, "explanation": ""}]
    assert shown_of(known, "B", tmp_path) == "A. cup\nB. fork"


@pytest.mark.parametrize(
    ("choices", "shown"),
    [
        (["A. cup", "B. fork"], "A. cup\nB. fork"),
        (["(a) cup", "(b) fork"], "A. cup\nB. fork"),
        (["A) cup", None, "C) fork"], "A. cup\nC. fork"),
        ({"A": "A: cup", "B": "B: fork"}, "A. cup\nB. fork"),
        ([{"label": "B", "text": "[B] cup"}, {"label": "A", "text": "[A] fork"}], "B. cup\nA. fork"),
        # The controls: these begin with no letters of theirs.
        (["A. cup", "fork"], "A. A. cup\nB. fork"),
        (["J. Smith", "K. Jones"], "A. J. Smith\nB. K. Jones"),
        (["a cup", "b"], "A. a cup\nB. b"),
    ],
)
def test_letters_are_shown_once(choices: Any, shown: str, tmp_path: Path) -> None:
    assert shown_of(choices, "A", tmp_path) == shown
    assert shown_of(choices, shown[3:].split("\n")[0], tmp_path) == shown


@pytest.mark.parametrize("first", [0, 1])
def test_keys_that_are_numbers_say_how_answers_count(first: int, tmp_path: Path) -> None:
    choices = {str(first): "x", str(first + 2): "z", str(first + 1): "y"}
    rows = [{**ASKED, "choices": choices, "answer": answer} for answer in (1, "2", first + 3)]
    *told, other = read_back(rows, tmp_path).told
    assert told == [[["<0.png>", "Which?\nA. x\nB. y\nC. z"], [letter]] for letter in ("BC", "AB")[first]]
    assert f"The answer is the number {first + 3}, and the row's choices count from {first} to {first + 2}." in other
    # The control: keys that count from neither say nothing of numbers.
    with pytest.raises(DataError, match="'answer' holds 5"):
        read_back([{**ASKED, "choices": {"5": "x", "6": "y"}, "answer": 5}], tmp_path)


def test_whole_numbers_that_tables_store_as_fractions_have_no_point(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {**ASKED, "A": 14.0, "B": 15.0, "hint": 2.0, "answer": 14.0},
        {**ASKED, "A": 1.0, "B": None, "C": 3.0, "hint": None, "answer": 3.0},
        {**ASKED, "A": 1.0, "B": None, "C": 3.0, "hint": 0, "answer": 1.0},
    ]
    told = read_back(rows, tmp_path).told
    assert told[0] == [["<0.png>", "Which?\n2\nA. 14\nB. 15"], ["14"]]
    assert told[1] == [["<0.png>", "Which?\nA. 1\nC. 3"], ["3"]]
    assert told[2] == [["<0.png>", "Which?\n0\nA. 1\nC. 3"], ["1"]]
    # The control: fractions keep their point.
    told = read_back([{**rows[0], "A": 14.5, "answer": 14.5}, {**rows[1], "hint": 2.5}], tmp_path).told
    assert told[0] == [["<0.png>", "Which?\n2.0\nA. 14.5\nB. 15.0"], ["14.5"]]
    assert told[1] == [["<0.png>", "Which?\n2.5\nA. 1\nC. 3"], ["3.0"]]


@pytest.mark.parametrize(
    ("choices", "shown"),
    [
        ("A) cup\nwith (B) inside\nB) fork", "A. cup\nwith (B) inside\nB. fork"),
        ("B. fork D. cup", "B. fork\nD. cup"),
        ("A. 1.5 B. 2.5", "A. 1.5\nB. 2.5"),
        ("(1) cup (2) fork", "A. cup\nB. fork"),
        ("e.g. cup, a fork", "A. e.g. cup\nB. a fork"),
        ("a.m., p.m.", "A. a.m.\nB. p.m."),
        ("|cup|fork|", "A. cup\nB. fork"),
    ],
)
def test_marks_in_a_text_begin_its_choices(choices: str, shown: str, tmp_path: Path) -> None:
    assert shown_of(choices, "B", tmp_path) == shown


def test_a_letter_that_no_choice_has_makes_a_bad_row_alone(tmp_path: Path) -> None:
    row = {**ASKED, "choices": ["cup", "fork"]}
    good, odd = read_back([{**row, "answer": "A"}, {**row, "answer": "E"}], tmp_path).told
    assert good == [["<0.png>", SHOWN], ["A"]]
    assert "rows.jsonl row 1 (line 2): The answer 'E' is none of the row's choices" in odd
    found = read_back([{**row, "answer": "A", "id": 3}], tmp_path).schema.explain()
    assert "shown behind the question" in found
    assert "not used: 'id'" in found, "and the choices are not among these"
    with pytest.raises(DataError, match="no first row says whether numbers count from 0 or from 1"):
        read_back([{**ASKED, "choices": ["a", "b", "c"], "answer": 1}], tmp_path)
