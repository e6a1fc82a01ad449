"""Choices in any form and place, with --choices refuse: a letter as the answer needs a question that shows them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from support.read_back import ReadBack
from support.read_back import read_back as read_rows
from vlm_lora.errors import DataError


def read_back(rows: Any, folder: Path, **settings: Any) -> ReadBack:
    """Read as with `--choices refuse`, so that no question is changed."""
    return read_rows(rows, folder, **{"choices": "refuse", **settings})


ASKED = {"image": "0.png", "question": "Which?"}
SHOWN = {"image": "0.png", "question": "Which? A. cup B. fork"}

FORMS: list[dict[str, Any]] = [
    {"A": "cup", "B": "fork", "C": None, "D": ""},
    {"a": "cup", "b": "fork"},
    *({f"{name}{place}": text for place, text in zip(places, ("cup", "fork"), strict=True)} for name, places in (
        ("choice_", "ab"), ("option", "AB"), ("Option ", "12"), ("ending", "01"), ("answer_", "ab"), ("opt.", "12"),
    )),
    *(
        {"options": value}
        for value in (
            {"A": "cup", "B": "fork"},
            ["cup", "fork"],
            "A. cup\nB. fork",
            "(A) cup (B) fork",
            "cup, fork",
            "cup\nfork",
            '{"A": "cup", "B": "fork"}',
            "['cup' 'fork']",
            [{"label": "A", "text": "cup"}, {"label": "B", "text": "fork"}],
            {"label": ["A", "B"], "text": ["cup", "fork"]},
            '[{"id": 1, "value": "cup"}, {"id": 2, "value": "fork"}]',
        )
    ),
    {"answer_choices": ["cup", "fork"]},
    {"Multiple_Choices": "cup|fork"},
]  # fmt: skip


@pytest.mark.parametrize("choices", FORMS)
def test_a_letter_alone_is_refused_in_every_form_of_choices(choices: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"'answer' holds 'B', which says one of .*cup', 'fork'.*type --ignore_columns "
    ):
        read_back([{**ASKED, **choices, "answer": "B"}], tmp_path)
    assert read_back([{**SHOWN, **choices, "answer": "B"}], tmp_path).told[0][1] == ["B"], "the question shows them"
    assert read_back([{**ASKED, **choices, "answer": "fork"}], tmp_path).told[0][1] == ["fork"], "the answer's own text"
    left_out = read_back([{**ASKED, **choices, "answer": "B"}], tmp_path, ignore_columns=tuple(choices))
    assert left_out.told[0][1] == ["B"]


@pytest.mark.parametrize(
    "answer",
    ["B", "(B)", "b", "B.", "B)", "[b]", "**B**", "1", 1, 1.0, "Option B", "The answer is (B).", "A, B", "AB", ["B"]],
)
def test_a_place_is_one_however_it_is_dressed(answer: Any, tmp_path: Path) -> None:
    for choices in ({"choices": ["cup", "fork"]}, {"A": "cup", "B": "fork"}):
        with pytest.raises(DataError, match="does not show them all"):
            read_back([{**ASKED, **choices, "answer": answer}], tmp_path)


@pytest.mark.parametrize("answer", ["cup", "B. fork", "I", "BE", "2.5", "", "a cup", "on the left", "yes"])
def test_other_answers_are_read(answer: str, tmp_path: Path) -> None:
    choices = ["cup", "I"]
    assert read_back([{**ASKED, "choices": choices, "answer": answer}], tmp_path).told[0][1] == [answer]
    others: list[dict[str, Any]] = [
        {"A": "cup"},
        {"b": "x", "c": "y"},
        {"answer_count": 2},
        {"options": []},
        {"options": None},
    ]
    for columns in others:
        row = {**ASKED, **columns, "answer": "B"}
        assert read_back([row], tmp_path, ignore_columns=tuple(columns)).told[0][1] == ["B"], "no choices"


def test_a_later_row_is_a_bad_one(tmp_path: Path) -> None:
    rows = [{**ASKED, "options": ["cup", "fork"], "answer": "cup"}] * 100
    found = read_back([*rows, {**rows[0], "answer": "(B)"}, {**rows[0], **SHOWN, "answer": "(B)"}], tmp_path)
    assert (
        "rows.jsonl row 100 (line 101): The answer is '(B)', which says one of 'options' (['cup', 'fork'])"
        in found.told[100]
    )
    assert found.told[101][1] == ["(B)"]
    left_out = read_back([*rows, {**rows[0], "answer": "(B)"}], tmp_path, ignore_columns=("options",))
    assert left_out.told[100][1] == ["(B)"]


def chat(*texts: str, **keys: Any) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text, **keys} for n, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        ({"messages": chat("Which?", "B")}, {}),
        ({"messages": chat("Which?", "B", "Sure?", "Yes.")}, {}),
        ({"messages": json.dumps(chat("Which?", "B"))}, {}),
        ({"conversations": [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": "B"}]}, {}),
        ({"answer": "B"}, {"default_prompt": "Which?"}),
        ({"caption": "B"}, {"default_prompt": "Which?"}),
    ],
)
def test_in_other_layouts_they_are_named(row: dict[str, Any], settings: dict[str, Any], tmp_path: Path) -> None:
    there = {"image": "0.png", **row}
    rows = [{**there, "choices": None}, {**there, "choices": ["cup", "fork"]}]
    with pytest.raises(DataError, match=r"has the column 'choices' .*type --ignore_columns choices$"):
        read_back(rows, tmp_path, **settings)
    none, left_out = read_back(rows, tmp_path, ignore_columns=("choices",), **settings).told
    assert none == left_out
    later = read_back([*rows[:1] * 100, rows[1]], tmp_path, **settings).told
    assert "row 100 (line 101): the column 'choices' (['cup', 'fork']) would not be read" in later[100]


def test_a_history_is_held_to_it(tmp_path: Path) -> None:
    row = {"image": "0.png", "question": "Which?", "answer": "fork", "history": [["Which?", "B"]]}
    (hidden,) = read_back([{**row, "choices": ["cup", "fork"]}], tmp_path).told
    assert "row 0 (line 1): The answer is 'B', which says one of 'choices' (['cup', 'fork'])" in hidden


def test_a_chat_whose_user_shows_them_or_without_them_is_read(tmp_path: Path) -> None:
    row = {"messages": chat("A. cup B. fork. Which?", "B"), "choices": ["cup", "fork"]}
    assert read_back([row], tmp_path).told[0][1] == ["B"]
    other = {**row, "messages": chat("Which?", "B")}
    assert read_back([other], tmp_path, ignore_columns=("choices",)).told[0][1] == ["B"]
    with pytest.raises(DataError, match="says one of 'choices'"):
        read_back([{"prompt": chat("Which?"), "completion": "B", "choices": ["cup", "fork"]}], tmp_path)


def test_tables_are_held_to_it(tmp_path: Path) -> None:
    with (tmp_path / "rows.tsv").open("w", encoding="utf-8", newline="") as stream:
        header = ("index", "question", "A", "B", "C", "answer", "image")
        csv.writer(stream, delimiter="\t").writerows([header, ("1", "Which?", "cup", "fork", "", "B", "0.png")])
    with pytest.raises(DataError, match=r"'answer' holds 'B', which says one of 'A', 'B' \(\['cup', 'fork'\]\)"):
        read_back(tmp_path / "rows.tsv", tmp_path)


def test_numbers_with_names_are_read_by_their_names(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["cup", "B"]),
            "choices": datasets.Sequence(datasets.Value("string")),
        }
    )
    rows = {"question": ["Which?"] * 2, "label": [0, 1], "choices": [["cup", "fork"]] * 2}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    named, letter = read_back(tmp_path / "rows.parquet", tmp_path).told
    assert named == [["Which?"], ["cup"]]
    assert "The answer is 'B', which says one of 'choices'" in letter
