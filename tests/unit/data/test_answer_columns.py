"""Answers that are numbers with names, lists written out in CSV cells, or only the place of one of the choices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.datasets import write_jsonl
from support.read_back import read_back
from vlm_lora.data.answer_columns import written_list
from vlm_lora.errors import DataError

ASKED = {"image": "0.png", "question": "What?"}


def named(folder: Path, label: Any, values: list[Any], form: str) -> Path:
    features = datasets.Features({"question": datasets.Value("string"), "label": label})
    made = datasets.Dataset.from_dict({"question": ["q"] * len(values), "label": values}, features=features)
    if form == "parquet":
        made.to_parquet(folder / "rows.parquet")
        return folder / "rows.parquet"
    made.save_to_disk(str(folder / "saved"))
    return folder / "saved"


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_numbers_become_the_names_that_the_data_declares(form: str, tmp_path: Path) -> None:
    animals = datasets.ClassLabel(names=["cat", "dog", "cow"])
    found = read_back(named(tmp_path, animals, [1, 2, -1, None], form), tmp_path)
    assert found.told[:2] == [[["q"], ["dog"]], [["q"], ["cow"]]]
    assert "row 2: The value of the response ('label') is -1, not one of the 3 names (0 to 2)" in found.told[2]
    assert "row 3: There is no value for the response" in found.told[3]
    assert "answers: the names of the numbers, declared by the data: ('cat', 'dog', 'cow')" in found.schema.explain()


def test_lists_of_named_numbers_are_named_and_undeclared_numbers_stay(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    lists = datasets.Sequence(datasets.ClassLabel(names=["cat", "dog"]))
    found = read_back(named(tmp_path / "a", lists, [[1, 0]], "parquet"), tmp_path)
    assert (found.told, found.accepted) == ([[["q"], ["dog"]]], [("dog", "cat")])
    numbers = named(tmp_path / "b", datasets.Value("int64"), [1], "parquet")
    assert read_back(numbers, tmp_path).told == [[["q"], ["1"]]], "the control"


@pytest.mark.parametrize("name", ["choices", "options", "Candidates"])
@pytest.mark.parametrize("answer", [1, 0, "B", "b", "1", 1.0, ["B"]])
def test_an_answer_that_is_only_a_place_among_choices_is_refused(name: str, answer: Any, tmp_path: Path) -> None:
    rows = [{**ASKED, name: ["red", "blue"], "answer": "red"}, {**ASKED, name: ["red", "blue"], "answer": answer}]
    said = rf"'answer' holds .*, which says one of '{name}' .*--prompt_column question --response_column answer"
    with pytest.raises(DataError, match=said):
        read_back(rows, tmp_path)
    assert read_back(rows[:1], tmp_path).told == [[["<0.png>", "What?"], ["red"]]]
    explicit = read_back(rows, tmp_path, prompt_column="question", response_column="answer")
    assert explicit.told[1][1] == [str(answer[0] if isinstance(answer, list) else answer)]
    assert f"not used: '{name}'" in explicit.schema.explain()


@pytest.mark.parametrize(
    ("choices", "answer"), [(["A", "B"], "B"), (["1", "2"], "2"), (["x", "y"], "yes"), ([], 1), ([1, 2], 1), (None, 1)]
)
def test_answers_that_are_choices_and_other_columns_are_read(choices: Any, answer: Any, tmp_path: Path) -> None:
    assert read_back([{**ASKED, "choices": choices, "answer": answer}], tmp_path).told[0][1] == [str(answer)]


def test_choices_written_out_as_text_count(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="says one of 'options'"):
        read_back([{**ASKED, "options": "['red', 'blue']", "answer": "B"}], tmp_path)


CELLS = """image,question,answer
0.png,q,"['14', '15']"
0.png,r,"[""it's""]"
0.png,s,
"""


def test_lists_written_out_in_csv_cells_are_lists(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(CELLS, encoding="utf-8")
    found = read_back(tmp_path / "rows.csv", tmp_path)
    assert [turns[1] for turns in found.told[:2]] == [["14"], ["it's"]]
    assert found.accepted[:2] == [("14", "15"), ("it's",)]
    assert "There is no value" in found.told[2]
    assert "answers: the cells of 'answer' are lists of accepted answers" in found.schema.explain()


def test_a_cell_that_is_no_list_makes_all_text_or_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(f"{CELLS}0.png,t,14\n", encoding="utf-8")
    assert read_back(tmp_path / "rows.csv", tmp_path).told[0][1] == ["['14', '15']"]
    many = CELLS + "0.png,q,['1']\n" * 100
    (tmp_path / "rows.csv").write_text(f"{many}0.png,t,14\n", encoding="utf-8")
    found = read_back(tmp_path / "rows.csv", tmp_path)
    assert "rows.csv row 103: The cell of the response ('answer') is '14'" in found.told[103]


def test_texts_of_other_formats_stay_as_they_are(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{**ASKED, "answer": "['14']"}])
    assert read_back(path, tmp_path).told[0][1] == ["['14']"]


@given(st.lists(st.text(max_size=8), min_size=1, max_size=4))
def test_what_python_writes_is_read_back(items: list[str]) -> None:
    assert written_list(repr(items)) == items


@pytest.mark.parametrize("cell", ["", "[]", "[1]", "['a', 1]", "['a'", "[f()]", "('a',)", "[" * 5000, "a", None, ["a"]])
def test_what_is_no_list_of_texts_is_none(cell: Any) -> None:
    assert written_list(cell) is None
