"""CSV cells: an empty one is a missing value, a line of them is left out, and rows keep their numbers."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from support.read_back import read_back
from vlm_lora.data.formats.csv_files import read_csv
from vlm_lora.data.ocr.tasks import load_tasks
from vlm_lora.data.sources.named import open_source
from vlm_lora.errors import DataError


def write(folder: Path, text: str, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_empty_cells_are_missing_values(suffix: str, tmp_path: Path) -> None:
    text = 'image,question,answer\n0.png,q,a\n0.png,q,\n0.png,"",a\n,q,a\n0.png,q, \n'
    path = write(tmp_path, text.replace(",", "\t") if suffix == "tsv" else text, f"rows.{suffix}")
    first, no_answer, no_question, no_image, blank = read_back(path, tmp_path).told
    assert first == [["<0.png>", "q"], ["a"]]
    said = "There is no value for the response ('answer'). JSON writes an empty text as \"\"; CSV has none."
    assert f"rows.{suffix} row 1 (line 3): {said}" in no_answer
    assert f"rows.{suffix} row 2 (line 4): There is no value for the prompt ('question')" in no_question
    assert no_image == [["q"], ["a"]], "a row of text"
    assert blank == [["<0.png>", "q"], [" "]], "a space is written"


def test_lines_of_empty_cells_are_left_out_and_count(tmp_path: Path) -> None:
    path = write(tmp_path, "image,question,answer\n,,\n0.png,q,a\n,,\n,,\n1.png,r,\n2.png,s,c\n,,\n,,\n")
    found = read_back(path, tmp_path).told
    assert len(found) == 3
    assert (found[0], found[2]) == ([["<0.png>", "q"], ["a"]], [["<2.png>", "s"], ["c"]])
    assert "rows.csv row 4 (line 6): There is no value" in found[1]
    for table in (read_csv(path), pickle.loads(pickle.dumps(read_csv(path)))):
        assert [table.number(place) for place in range(len(table))] == [1, 4, 5]
        assert [table.line(place) for place in range(len(table))] == [3, 6, 7]
        assert table[1]["question"] == "r"


def test_blank_lines_are_left_out_and_count_behind_the_names_of_the_columns(tmp_path: Path) -> None:
    table = read_csv(write(tmp_path, '\n\nquestion,answer\n\nq,"a\n\nb"\n\n,\nr,\n\n'))
    assert [table[place] for place in range(len(table))] == [
        {"question": "q", "answer": "a\n\nb"},
        {"question": "r", "answer": None},
    ]
    assert [table.number(place) for place in range(len(table))] == [1, 4]
    assert [table.line(place) for place in range(len(table))] == [5, 10]
    one = read_csv(write(tmp_path, "question\nq\n\nr\n"))
    assert [(one.number(place), one[place]["question"]) for place in range(len(one))] == [(0, "q"), (2, "r")]
    with pytest.raises(DataError, match="is empty: the first line must name the columns"):
        read_csv(write(tmp_path, "\n\n"))


def test_numbers_of_rows_are_those_of_each_file(tmp_path: Path) -> None:
    write(tmp_path, "a,b\n1,2\n,\n", "train-0.csv")
    write(tmp_path, "a,b\n,\n3,4\n", "train-1.csv")
    rows = open_source(str(tmp_path / "train-*.csv")).splits["train"]
    assert [(Path(rows.source(i).file).name, rows.source(i).row) for i in range(len(rows))] == [
        ("train-0.csv", 0),
        ("train-1.csv", 1),
    ]


def test_errors_of_task_files_name_the_line_s_row(tmp_path: Path) -> None:
    path = write(tmp_path, "task,input_type,output_type,question\n,,,\nreading,image,text,\n", "tasks.csv")
    with pytest.raises(DataError, match=r"tasks\.csv row 1 \(line 3\): its question is empty"):
        load_tasks(path)
