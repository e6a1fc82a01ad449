"""JSON and JSON Lines: rows by byte range equal the standard parser's, malformed input has a line."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.formats.json_files import JsonFile, read_json, read_json_lines
from vlm_lora.data.sources.named import open_source
from vlm_lora.data.sources.streams import open_stream
from vlm_lora.errors import DataError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=5)


def rows_of(file: JsonFile) -> list[Any]:
    return [dict(file[i]) for i in range(len(file))]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]), mark=st.booleans())
def test_any_rows_come_back(tmp_path: Path, rows: list[Any], ascii_only: bool, indent: int | None, mark: bool) -> None:
    start = b"\xef\xbb\xbf" if mark else b""
    listed, wrapped, lines = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "c.jsonl"
    listed.write_bytes(
        start + json.dumps(rows, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    )
    whole = {"version": "é", "info": {"data": 1}, "data": rows, "description": [1]}
    wrapped.write_bytes(
        start + json.dumps(whole, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    )
    lines.write_bytes(start + b"".join(json.dumps(r, ensure_ascii=ascii_only).encode() + b"\r\n\n" for r in rows))
    for file in (read_json(listed), read_json(wrapped), read_json_lines(lines)):
        assert rows_of(file) == rows
        assert set(file.columns) == {key for row in rows for key in row}


def test_json_with_one_object_a_line_is_read_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}\n{"a": 2, "b": "é"}\n', encoding="utf-8")
    assert rows_of(read_json(path)) == [{"a": 1}, {"a": 2, "b": "é"}]


def test_columns_are_those_of_all_rows_not_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n' * 300 + '{"late": 1}\n', encoding="utf-8")
    assert read_json_lines(path).columns == ("a", "late")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"a": 1}\n\n{"a": }\n', "line 3: not JSON"),
        ("a.jsonl", b'{"a": 1}\n{"a": 1', "line 2.*cut off"),
        ("a.jsonl", b'{"a": 1}\n[1, 2]\n', "line 2.*this one is a list"),
        ("a.jsonl", b'{"a": 1}\n3\n', "line 2.*this one is a number"),
        ("a.jsonl", b'{"a": "\xe9"}\n', "line 1: not UTF-8"),
        ("a.jsonl", b"[" * 200_000, "not usable"),
        ("a.json", b'[\n{"a": 1},\n{"a" 2}\n]', "line 3: not JSON"),
        ("a.json", b'[\n{"a": 1}\n{"a": 2}\n]', "line 3: not JSON: expected ,"),
        ("a.json", b'[{"a": 1},\n]', "line 2: not JSON: a comma before"),
        ("a.json", b'[{"a": 1}', "not JSON: expected ,"),
        ("a.json", b'[{"a": 1}]\n[]', "line 2: not JSON: text after"),
        ("a.json", b'[{"a": 1},\n "b"]', "line 2.*this one is a string"),
        ("a.json", b'\n{"a": "\xe9"}', "line 2: not UTF-8"),
        ("a.json", b'{"rows": []}', "`data` list"),
        ("a.json", b'{"image": ["a"], "label": ["b"]}', "'image', 'label'"),
        ("a.json", b'"text"', "list of objects"),
    ],
)
def test_malformed_input_names_file_and_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        (read_json if name.endswith("json") else read_json_lines)(path)
    assert str(path) in str(caught.value)


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n', encoding="utf-8")
    file = read_json_lines(path)
    assert file[1] == {"a": 2}
    path.write_text('{"a": 3}\n{"a": 4}\n', encoding="utf-8")
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match="was changed"):
        file[1]
    assert read_json_lines(path)[1] == {"a": 4}


def test_pickling_carries_positions_not_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"a": "x" * 5000, "n": n}) + "\n" for n in range(50)), encoding="utf-8")
    file = read_json_lines(path)
    packed = pickle.dumps(file)
    assert len(packed) < 2500
    assert pickle.loads(packed)[49]["n"] == 49


DOCUMENTS = {
    "a list": lambda rows: json.dumps(rows),
    "a list over lines": lambda rows: json.dumps(rows, indent=1),
    "an object with data": lambda rows: json.dumps({"version": 1, "data": rows}, indent=1),
    "objects over lines": lambda rows: "\n".join(json.dumps(row, indent=1, ensure_ascii=False) for row in rows),
    "one object a line": lambda rows: "\n".join(json.dumps(row) for row in rows),
}


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.ndjson", "rows.txt", "rows", "rows.jsonl.2"])
@pytest.mark.parametrize("form", DOCUMENTS)
@pytest.mark.parametrize("mark", ["", "\ufeff\n"])
def test_a_document_is_read_whatever_its_file_is_called(tmp_path: Path, name: str, form: str, mark: str) -> None:
    rows = [{"question": "é\n{", "answer": ["a"]}, {"question": "b", "answer": []}]
    path = tmp_path / name
    path.write_text(mark + DOCUMENTS[form](rows), encoding="utf-8")
    (found,) = open_source(str(path)).splits.values()
    assert [dict(found[place]) for place in range(len(found))] == rows


def test_broken_documents_name_the_line_and_other_files_their_ending(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for content, said in (
        ('{\n "a": 1\n}\n{\n "a": 2,\n}', "rows.jsonl line 6: not JSON"),
        ('[{"a": 1},\n {"a": 2}', "rows.jsonl line 2: not JSON: expected , or ]"),
        ('{"a": 1}\n{"a": 2', "rows.jsonl line 2: not JSON.*Is the file cut off"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=said):
            open_source(str(path))
    text = tmp_path / "rows.txt"
    text.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"files ending in '\.txt' are not read"):
        open_source(str(text))


def test_a_document_is_not_streamed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('[{"a": 1}]')
    assert open_stream(DataConfig(dataset_name=str(path), streaming=True)) is None
    assert f"--streaming true has no effect on {path}" in caplog.text
    path.write_text('{"a": 1}')
    stream = open_stream(DataConfig(dataset_name=str(path), streaming=True))
    assert stream is not None
    assert [dict(row.values) for row in stream] == [{"a": 1}]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_each_row_knows_its_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for text, lines in (
        ('\n{"a": 1}\n\n{"a": "\u00e9"}\n{"a": 3}', [2, 4, 5]),
        ('[\n{"a": 1}, {"a": 2},\n\n {"a":\n 3}]', [2, 2, 4]),
        ('{\n"a": 1\n}\n{\n"a": 2\n}\n', [1, 4]),
        ('{"info": [1],\n "data": [{"a": 1},\n{"a": 2}]}\n' if name == "rows.json" else '{"a": 1}\n\n{"a": 2}', None),
    ):
        path.write_text(text, encoding="utf-8")
        (rows,) = open_source(str(path)).splits.values()
        found = [rows.source(place).line for place in range(len(rows))]
        assert found == (lines or ([2, 3] if name == "rows.json" else [1, 3]))
    assert str(rows.source(1)) == f"{path} row 1 (line 3)"


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        ({"system": "Be terse", "annotations": [1]}, r"'system' \('Be terse'\), 'annotations'"),
        ({"metadata": {"a": {"system_prompt": "Be terse"}}}, r"'metadata\.a\.system_prompt' \('Be terse'\)"),
        (
            {"info": {"instruction": "Answer.", "features": {"question": "text"}}},
            r"'info\.instruction' \('Answer\.'\), which",
        ),
        ({"remarks": "x", "system": ""}, r"'remarks' \('x'\), which"),
        ({"defaults": {"max_pixels": 5}}, r"'defaults'"),
    ],
)
def test_what_a_document_says_beside_its_rows_is_refused(tmp_path: Path, beside: dict[str, Any], named: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({**beside, "data": [{"question": "q", "answer": "a"}]}))
    with pytest.raises(DataError, match=rf"rows\.json: beside its rows under 'data', the document has {named}"):
        read_json(path)


def test_what_a_document_says_of_itself_is_left_out(tmp_path: Path) -> None:
    """The control: names that public documents have, filled with anything else."""
    beside = {
        "info": {"description": "VQA", "contributor": "x", "url": "https://example.com", "date_created": "today"},
        "licenses": [{"id": 1}],
        "schema": {"fields": [{"name": "question"}], "pandas_version": "1.4.0"},
        "dataset_info": {"features": {"question": {"dtype": "string"}}},
        "dataset_name": "docvqa",
        "data_version": 1,
        "system": None,
        "tools": [],
        "metadata": {"system": "", "more": {"author": "x"}},
        "$schema": "x",
        "Title": "x",
        "object": "list",
        "has_more": True,
    }
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({**beside, "data": [{"question": "q", "answer": "a"}]}))
    assert rows_of(read_json(path)) == [{"question": "q", "answer": "a"}]
    path.write_text(json.dumps({"metadata": {"system_prompt": "Be terse"}, "entries": [{"question": "q"}]}))
    with pytest.raises(DataError, match=r"beside its rows under 'entries', .*'metadata\.system_prompt'"):
        read_json(path)
