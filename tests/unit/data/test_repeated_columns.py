"""A column that is left aside because another says what it says in the first rows: each later row is held to that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.datasets import write_image
from support.read_back import read_back
from vlm_lora.data.columns.search import SAMPLE

ASKED = {"image": "0.png", "question": "How many?", "query": "Hint: count.\nHow many?", "answer": "2"}


@pytest.mark.parametrize("at", [SAMPLE, SAMPLE + 1])
def test_a_question_that_the_prompt_no_longer_holds_makes_a_bad_row(at: int, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [ASKED] * at
    told = read_back([*rows, {**ASKED, "question": "Which colour?"}, {**ASKED, "question": None}], tmp_path).told
    assert told[:-2] == [told[-1]] * at
    assert told[-1] == [["<0.png>", "Hint: count.\nHow many?"], ["2"]]
    assert "text of 'question' ('Which colour?') does not stand inside that of 'query'" in told[-2]
    assert "--ignore_columns question or --prompt_column question" in told[-2]


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({"ignore_columns": ("question",)}, "Hint: count.\nHow many?"),
        ({"prompt_column": "query"}, "Hint: count.\nHow many?"),
        ({"prompt_column": "question"}, "Which colour?"),
    ],
)
def test_what_the_message_says_to_type_reads_the_row(settings: Any, asked: str, tmp_path: Path) -> None:
    odd = {**ASKED, "question": "Which colour?"}
    told = read_back([*[ASKED] * SAMPLE, odd], tmp_path, **settings).told
    assert told[-1][0] == ["<0.png>", asked]


@pytest.mark.parametrize("number", [0, SAMPLE])
def test_an_image_that_the_row_has_as_an_address_alone_makes_a_bad_row(number: int, tmp_path: Path) -> None:
    picture = {"bytes": write_image(tmp_path / "0.png", seed=0).read_bytes(), "path": "0.png"}
    good: dict[str, Any] = {"image": "0.png", "decoded_image": picture, "question": "q", "answer": "a"}
    rows = [good] * (SAMPLE + 2)
    rows[number] = {**good, "decoded_image": None}
    rows[-1] = {**good, "image": None}
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    told = read_back(path, tmp_path).told
    assert "The row has no image in 'decoded_image', and 'image' holds '0.png'" in told[number]
    assert told[number].endswith("or type --image_column image.")
    assert all(isinstance(each, list) for at, each in enumerate(told) if at != number), "the control"
    assert read_back(path, tmp_path, image_column="image").told[number][0] == ["<0.png>", "q"]
