"""Answers that are numbers with names, lists written out in CSV cells, or only the place of one of the choices."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from support.datasets import write_jsonl
from support.read_back import read_back
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
    said = rf"'answer' holds .*, which says one of '{name}' .*--ignore_columns {name}"
    with pytest.raises(DataError, match=said):
        read_back(rows, tmp_path, choices="refuse")
    assert read_back(rows[:1], tmp_path, choices="refuse").told == [[["<0.png>", "What?"], ["red"]]]
    left_out = read_back(rows, tmp_path, ignore_columns=(name,))
    written = answer[0] if isinstance(answer, list) else answer
    assert left_out.told[1][1] == [f"{written:g}" if isinstance(written, float) else str(written)]
    assert f"not used: '{name}'" in left_out.schema.explain()


@pytest.mark.parametrize(
    ("choices", "answer"),
    [
        *[(["A", "B"], "B"), (["1", "2"], "2"), (["3", "12"], 12)],
        *[(["x", "y"], "yes"), ([], 1), ([1, 2], 1), (None, 1)],
    ],
)
def test_answers_that_are_choices_and_other_columns_are_read(choices: Any, answer: Any, tmp_path: Path) -> None:
    assert read_back([{**ASKED, "choices": choices, "answer": answer}], tmp_path, choices="refuse").told[0][1] == [
        str(answer)
    ]


@pytest.mark.parametrize(
    ("asked", "choices", "answer"),
    [
        ({"question": "What? A. cat B. dog"}, ["cat", "dog"], "B"),
        ({"question": "What?\n(a) Cat\n(b) Dog"}, ["cat ", "dog"], "b"),
        ({"question": "How many? 1) 2, 2) 12"}, ["2", "12"], 1),
        ({"question": "A.猫B.狗"}, ["猫", "狗"], "B"),
        ({"question": "Is it a) $5.00 (new) or b) c++?"}, ["$5.00 (new)", "c++"], "A"),
        ({"instruction": "What?", "input": "cat or dog"}, ["cat", "dog"], 1),
        ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "0: cat, 1: dog"}]}]}, ["cat", "dog"], 1),
    ],
)
def test_places_are_answers_where_the_question_shows_all_choices(
    asked: dict[str, Any], choices: list[str], answer: Any, tmp_path: Path
) -> None:
    row = {"image": "0.png", **asked, "options": choices, "answer": answer}
    assert read_back([row], tmp_path).told[0][-1] == [str(answer)]
    with pytest.raises(DataError, match="does not show them"):
        read_back([row, {**row, "options": [*choices, "horse"]}], tmp_path, choices="refuse")


@pytest.mark.parametrize("question", ["Of 12 cats in 13?", "Is 2 right?", "Which?"])
def test_choices_inside_other_words_are_not_shown(question: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not show them"):
        read_back([{"image": "0.png", "question": question, "options": ["2", "3"], "answer": 1}], tmp_path)


@pytest.mark.parametrize("options", ["['red', 'blue']", '["red", "blue"]', "['red' 'blue']"])
def test_choices_written_out_as_text_count(options: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"says one of 'options' \(\['red', 'blue'\]\)"):
        read_back([{**ASKED, "options": options, "answer": "B"}], tmp_path, choices="refuse")


@pytest.mark.parametrize("several", [False, True])
def test_whole_numbers_are_written_without_a_point(several: bool, tmp_path: Path) -> None:
    """A table with a missing value stores them as fractions; a column with a real fraction keeps its points."""

    def table(*values: float | None) -> Path:
        answers = [[value] if several and value is not None else value for value in values]
        rows = [{**ASKED, "answer": answer} for answer in answers]
        place = tmp_path / "-".join(map(str, values))
        place.mkdir()
        datasets.Dataset.from_list(rows).to_parquet(str(place / "rows.parquet"))
        return place / "rows.parquet"

    def read(*values: float | None) -> list[Any]:
        path = table(*values)
        return [told if isinstance(told, str) else told[1] for told in read_back(path, path.parent).told]

    none, *whole = read(None, 14.0, -3.0, 1e6)
    assert whole == [["14"], ["-3"], ["1000000"]]
    assert "There is no value for the response" in none
    assert read(14.0, 2.5) == [["14.0"], ["2.5"]], "the control"


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


def test_cells_that_pandas_writes_of_arrays_are_lists(tmp_path: Path) -> None:
    answers = [np.array(["14", "15"], dtype=object), np.array(["a" * 50, "b" * 50], dtype=object)]
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("image", "question", "answer"), *(("0.png", "q", answer) for answer in answers)])
    assert "\n" in str(answers[1]), "one that wraps"
    assert read_back(tmp_path / "rows.csv", tmp_path).accepted == [("14", "15"), ("a" * 50, "b" * 50)]


def cells(folder: Path, *answers: str) -> list[Any]:
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("image", "question", "answer"), *(("0.png", "q", answer) for answer in answers)])
    return [turns if isinstance(turns, str) else turns[1][0] for turns in read_back(folder / "rows.csv", folder).told]


def test_where_most_cells_are_lists_the_others_are_bad_rows(tmp_path: Path) -> None:
    *fine, odd = cells(tmp_path, "['14', '15']", "['16']", "14")
    assert fine == ["14", "16"]
    assert (
        "rows.csv row 2 (line 4): The cell of the response ('answer') is '14', and most of the first rows' cells are"
        in odd
    )
    assert cells(tmp_path, *["['1']"] * 101, "14")[101].startswith(f"{tmp_path}/rows.csv row 101 (line 103): The cell")


@pytest.mark.parametrize("odd", ["['a', 'b']", '["a"]', "['a' 'b']", "[]"])
def test_a_list_among_plain_cells_is_a_bad_row(odd: str, tmp_path: Path) -> None:
    first, said, last = cells(tmp_path, "14", odd, "[14")
    assert (first, last) == ("14", "[14"), "the control: no list"
    assert f"rows.csv row 1 (line 3): The text of the response ('answer') is {odd!r}, a list that is written" in said
    late = cells(tmp_path, *["14"] * 101, odd)
    assert "a list that is written out, and most of the first rows' are no lists of texts" in late[101]
    assert f"JSON Lines, where [{json.dumps(odd)}] is one answer" in said


@pytest.mark.parametrize("missing", ["nan", "NaN", "None", "<NA>"])
def test_what_pandas_writes_for_a_missing_value_is_one_in_csv(missing: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(f"question,answer\nq,{missing}\n{missing},a\nq,{missing} of\n", encoding="utf-8")
    no_answer, no_question, fine = read_back(tmp_path / "rows.csv", tmp_path).told
    assert f"There is no value for the response ('answer'): its cell is {missing}, as a missing" in no_answer
    assert f"There is no value for the prompt ('question'): its cell is {missing}, as a missing" in no_question
    assert fine == [["q"], [f"{missing} of"]]
    rows = [{"question": missing, "answer": missing}]
    assert read_back(rows, tmp_path).told == [[[missing], [missing]]], "the control: JSON has null"


def test_choices_may_be_called_so(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("question,A,B,answer\nq,None,two,B\n", encoding="utf-8")
    assert read_back(tmp_path / "rows.csv", tmp_path).told == [[["q\nA. None\nB. two"], ["B"]]]


def test_lists_written_out_in_json_are_lists_where_the_name_says_several(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {**ASKED, "answers": "['a', 'b']"},
        {**ASKED, "answers": ["c"]},
        {**ASKED, "answers": "['d']"},
    ]
    found = read_back(rows, tmp_path)
    assert found.accepted == [("a", "b"), ("c",), ("d",)]
    mixed = read_back([{**ASKED, "answers": "a"}, rows[0], {**ASKED, "answers": ["['a']"]}], tmp_path).told
    assert (mixed[0][1], mixed[2][1]) == (["a"], ["['a']"])
    assert "(line 2): The text of the response ('answers') is \"['a', 'b']\", a list that is written out" in mixed[1]
    assert "put it into a list of its own: [\"['a', 'b']\"] is one answer" in mixed[1]
    one = read_back([{**ASKED, "answer": "['a', 'b']"}], tmp_path)
    assert one.told[0][1] == ["['a', 'b']"], "the control: a name of one answer"
    assert "the texts of 'answer' write lists, and are trained on as they are" in one.schema.explain()


def test_a_list_of_no_answers_is_a_bad_row_beside_lists_and_text_beside_texts(tmp_path: Path) -> None:
    first, *empty = cells(tmp_path, "['14']", "[]", "[]")
    assert first == "14"
    assert all(
        f"row {n} (line {n + 2}): The list of accepted answers in 'answer' is empty" in said
        for n, said in enumerate(empty, 1)
    )
    found = '[{"bbox_2d": [1, 2, 3, 4]}]'
    assert cells(tmp_path, found, "[]", "[]", "[]") == [found, "[]", "[]", "[]"]
    (alone,) = cells(tmp_path, "[]")
    assert "The text of the response ('answer') is '[]', a list that is written out" in alone


def test_texts_of_other_formats_stay_as_they_are(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{**ASKED, "answer": "['14']"}])
    assert read_back(path, tmp_path).told[0][1] == ["['14']"]


def test_answers_in_objects_may_have_keys_that_hold_nothing_and_no_others(tmp_path: Path) -> None:
    row = {"image": "0.png", "question": "q"}
    known = [{"answer": "a", "answer_confidence": "yes", "answer_id": 1}, {"answer": "b", "answer_confidence": "no"}]
    odd = [{"answer": "a", "remark": "x"}]
    told = read_back([{**row, "answers": known}, {**row, "answers": odd}], tmp_path)
    assert told.accepted[0] == ("a", "b")
    assert (
        "An object in the list of the response ('answers') has 'remark', and only its 'answer' is read" in told.told[1]
    )
