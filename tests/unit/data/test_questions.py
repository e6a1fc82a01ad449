"""Files of questions: one row that is none stops no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.questions import open_questions, put_broken
from vlm_lora.errors import DataError

FIRST, LAST = '{"prompt": "What is it?"}', '{"prompt": "And now?"}'


def write(folder: Path, text: str, name: str = "questions.jsonl") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("7", "this one is a number"),
        ('{"prompt": "cut o', "not JSON"),
        ('"What?"', "this one is"),
        ('{"prompt": "a", "prompt": "b"}', "the key 'prompt' is there twice"),
        ("NaN", "this one is"),
    ],
)
def test_a_line_that_is_no_row_is_named_and_the_others_keep_their_numbers(row: str, said: str, tmp_path: Path) -> None:
    name = write(tmp_path, f"{FIRST}\n\n{row}\n{LAST}\n")
    found = open_questions(name, DataConfig())
    assert [str(found.rows.source(index)) for index in range(2)] == [f"{name} row 0 (line 1)", f"{name} row 2 (line 4)"]
    ((place, text),) = found.broken.values()
    assert place == f"{name} row 1 (line 3)"
    assert said in text
    assert open_questions(write(tmp_path, f"{FIRST}\n{LAST}\n"), DataConfig()).broken == {}, "the control"


def test_a_member_of_a_list_that_is_no_row(tmp_path: Path) -> None:
    name = write(tmp_path, f"[{FIRST}, 7,\n{LAST}]", "questions.json")
    found = open_questions(name, DataConfig())
    assert list(found.broken) == [1]
    assert found.rows.source(1).row == 2


@pytest.mark.parametrize("text", ["7\n", f"[{FIRST}, {LAST}", '{"prompt": "cut o'])
def test_a_file_without_a_row_that_can_be_used_is_refused_as_before(text: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"questions\.json"):
        open_questions(write(tmp_path, text), DataConfig())


def test_broken_rows_stand_where_they_stood() -> None:
    broken = {0: ("a", "x"), 2: ("c", "y"), 5: ("f", "z")}
    numbers = [1, 3, 4]
    first = put_broken([{"source": "b"}], numbers, broken)
    assert [record["source"] for record in first] == ["a", "b", "c"]
    assert list(broken) == [5]
    rest = put_broken([{"source": "d"}, {"source": "e"}], numbers[1:], broken)
    assert [record["source"] for record in rest] == ["d", "e", "f"]
