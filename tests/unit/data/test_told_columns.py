"""A row's own system text and the turns before its question, in every layout and way of writing them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.read_back import read_back
from support.tars import write_tar
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.columns.late import LateColumns
from vlm_lora.data.dataset import ConversationDataset, load_splits
from vlm_lora.data.sources.streams import StreamedRow
from vlm_lora.errors import DataError

ASKED = {"images": ["0.png"], "query": "And red?", "response": "Two."}
BEFORE = [["<0.png>", "How many?"], ["Five."]]
"""A history's turns, with the image where its text marks it."""
WHOLE = [["Be terse."], *BEFORE, ["And red?"], ["Two."]]
CHAT = {"conversations": [{"from": "human", "value": "<image>Tall?"}, {"from": "gpt", "value": "3 m."}]}


def openai(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


HISTORIES: list[Any] = [
    [["<image>How many?", "Five."]],
    [{"user": "<image>How many?", "assistant": "Five."}],
    [{"query": "<image>How many?", "response": "Five.", "system": None}],
    [{"Question": "<image>How many?"}, {"answer": "Five."}],
    openai("<image>How many?", "Five."),
    [{"from": "human", "value": "<image>How many?"}, {"from": "gpt", "value": "Five."}],
]


@pytest.mark.parametrize("history", [*HISTORIES, *map(json.dumps, HISTORIES), *map(repr, HISTORIES)])
def test_a_history_becomes_turns_before_the_question(history: Any, tmp_path: Path) -> None:
    row = {**ASKED, "System": "Be terse.", "History": history}
    found = read_back([row, {**ASKED, "System": None, "History": []}], tmp_path)
    assert found.told == [WHOLE, [["<0.png>", "And red?"], ["Two."]]]
    assert "system: 'System', by name: the row's system turn" in found.schema.explain()
    assert "not used" not in found.schema.explain()


@pytest.mark.parametrize("name", ["system", "system_prompt", "SYSTEM_MESSAGE"])
@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"question": "q", "answer": "a"}, [["q"], ["a"]]),
        ({"instruction": "q", "input": "r", "output": "a"}, [["q\nr"], ["a"]]),
        ({"image": "0.png", "caption": "a"}, [["<0.png>", "Describe the picture."], ["a"]]),
        ({"messages": openai("q", "a")}, [["q"], ["a"]]),
        ({"messages": json.dumps(openai("q", "a"))}, [["q"], ["a"]]),
        ({**CHAT, "images": ["0.png"]}, [["<0.png>", "Tall?"], ["3 m."]]),
        ({"prompt": openai("q"), "completion": [{"role": "assistant", "content": "a"}]}, [["q"], ["a"]]),
    ],
)
def test_a_system_text_is_the_first_turn_in_every_layout(
    row: dict[str, Any], turns: list[list[str]], name: str, tmp_path: Path
) -> None:
    rows = [{**row, name: "You measure."}, {**row, name: " "}, {**row, name: None}]
    assert read_back(rows, tmp_path).told == [[["You measure."], *turns], turns, turns]
    own = read_back(rows, tmp_path, system_prompt="Ours.")
    assert own.told == [[["You measure."], *turns], [["Ours."], *turns], [["Ours."], *turns]]
    assert "--system_prompt is for rows without one" in own.schema.explain()


def test_boxes_and_pages_have_a_system_text_too(tmp_path: Path) -> None:
    boxes = {"image": "0.png", "objects": {"bbox": [[1, 2, 3, 4]], "category": ["cup"]}}
    page = {"image": "0.png", "text": {"lines": [{"text": "Sum", "bbox": [1, 2, 9, 9]}]}}
    for row in (boxes, page):
        first, second = read_back([{**row, "system": "S."}, {**row, "history": [["q", "a"]]}], tmp_path).told
        assert (first[0], len(first)) == (["S."], 3)
        assert "The column 'history' holds turns before the question" in second


def test_a_history_goes_before_a_chat_and_behind_its_system_turn(tmp_path: Path) -> None:
    own = [{"role": "system", "content": "S."}, *openai("q2", "a2")]
    history = openai("q1", "a1")
    told = [["S."], ["q1"], ["a1"], ["q2"], ["a2"]]
    rows: list[dict[str, Any]] = [
        {"messages": own, "history": history},
        {"messages": own, "history": [own[0], *history]},
        {"messages": own[1:], "history": [own[0], *history]},
        {"messages": own, "history": history, "system": "S."},
        {"messages": own, "history": [{**own[0], "content": "Other."}, *history]},
    ]
    *fine, odd = read_back([{**row, "system": row.get("system")} for row in rows], tmp_path).told
    assert fine == [told] * 4
    assert "The history's system turn ('Other.') and the row's own ('S.') differ" in odd


def test_a_column_of_turns_called_history_may_be_the_only_chat(tmp_path: Path) -> None:
    assert read_back([{"history": openai("q", "a")}], tmp_path).told == [[["q"], ["a"]]]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"history": [["q"]]}, r"item 1 is \['q'\]\. A history is written as"),
        ({"history": [["q", "a"], ["q", "a", "b"]]}, "item 2 is"),
        ({"history": ["q", "a"]}, "item 1 is 'q'"),
        ({"history": [["q", None]]}, r"Turn 2 \(assistant\) has no content"),
        ({"history": openai("q")}, "it ends without an answer"),
        ({"history": "[['q', 'a']"}, "which is no JSON, nor what Python writes"),
        ({"history": "{'q'}"}, r"it is \{'q'\}\. It is written as a list"),
        ({"history": {"q": "a"}}, "it is {'q': 'a'}"),
        ({"history": [["q", "a"]], "chat_history": [["q", "a"]]}, "'history', 'chat_history' both hold a history"),
        ({"system": 7}, "The system text in column 'system' is 7. Write it as text"),
        ({"system": "S.", "system_prompt": "T."}, "'system', 'system_prompt' hold two system texts that differ"),
        (
            {"system": "S.", "history": [{"role": "system", "content": "T."}, *openai("q", "a")]},
            r"\('S\.'\).*\('T\.'\)",
        ),
    ],
)
def test_what_cannot_be_read_is_a_bad_row(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    filled = {"history": None, "chat_history": None, "system": None, "system_prompt": None}
    found = read_back(
        [{**filled, **ASKED, **row}, {**filled, **ASKED, "system": "S.", "system_prompt": "S."}], tmp_path
    )
    with pytest.raises(DataError, match=rf"rows\.jsonl row 0 \(line 1\): .*{said}"):
        raise DataError(found.told[0])
    assert found.told[1] == [["S."], ["<0.png>", "And red?"], ["Two."]], "the control: two columns that agree"


def test_a_chat_with_another_system_turn_is_a_bad_row(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "S."}, *openai("q", "a")]
    same, other = read_back([{"messages": chat, "system": text} for text in ("S.", "T.")], tmp_path).told
    assert same == [["S."], ["q"], ["a"]]
    assert "The row's system text ('T.') and its turns' own ('S.') differ" in other


def test_tables_and_tars_are_read_alike(tmp_path: Path) -> None:
    history = [["<image>How many?", "Five."]]
    row = {**ASKED, "system": "Be terse.", "history": history}
    pq.write_table(pa.Table.from_pylist([row, {**row, "system": None, "history": None}]), tmp_path / "rows.parquet")
    assert read_back(tmp_path / "rows.parquet", tmp_path).told == [WHOLE, [["<0.png>", "And red?"], ["Two."]]]
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as stream:
        header = ("images", "query", "response", "system", "history")
        csv.writer(stream).writerows([header, ("0.png", "And red?", "Two.", "Be terse.", json.dumps(history))])
    assert read_back(tmp_path / "rows.csv", tmp_path).told == [WHOLE]
    sample = {"query": "And red?", "response": "Two.", "system": "Be terse.", "history": history}
    picture = (tmp_path / "0.png").read_bytes()
    tar = write_tar(tmp_path / "rows.tar", [("0.json", json.dumps(sample).encode()), ("0.png", picture)])
    (found,) = read_back(tar, tmp_path).told
    assert [turns[-1] for turns in found] == [turns[-1] for turns in WHOLE]


@pytest.mark.parametrize(
    ("late", "value", "name"), [("system", "S.", "system text"), ("history", [["q", "a"]], "history")]
)
def test_a_stream_stops_at_a_system_text_that_comes_late(late: str, value: Any, name: str, tmp_path: Path) -> None:
    first = {"question": "q", "answer": "a"}
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps(first)] * 3), encoding="utf-8")
    config = DataConfig(dataset_name=str(tmp_path / "rows.jsonl"), validation_fraction=0.0)
    train = load_splits(config, need_train=True, need_validation=False).train
    assert isinstance(train, ConversationDataset)
    check = LateColumns(train.rows, train.schema, config).check

    def row(**values: Any) -> StreamedRow:
        return StreamedRow(values={**first, **values}, source=train.source(0), folder=None, number=100)

    check(row(**{late: None, "other": "x"}))
    with pytest.raises(DataError, match=f"the column '{late}' may be the {name}"):
        check(row(**{late: value}))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("system", [{"text": "Be "}, {"text": "brief."}]),
        ("systemInstruction", {"role": "user", "parts": [{"text": "Be brief."}]}),
        ("system_instruction", {"parts": [{"text": "Be brief."}]}),
    ],
)
def test_system_texts_of_services_requests_are_read(column: str, value: Any, tmp_path: Path) -> None:
    row = {"image": "0.png", "question": "q", "answer": "a"}
    assert read_back([{**row, column: value}], tmp_path).told == [[["Be brief."], ["<0.png>", "q"], ["a"]]]
    for odd in (7, [{"image": "0.png"}], {"parts": [{"text": "Be", "mood": "calm"}]}):
        assert f"The system text in column '{column}' is" in read_back([row, {**row, column: odd}], tmp_path).told[1]
