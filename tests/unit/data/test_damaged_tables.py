"""Damaged Arrow and Parquet files: every row is read or is a DataError, and the process lives.

Arrow trusts what a file says about its own offsets: without a check, some of these files end the process.
"""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlm_lora.data.formats.arrow_files import ArrowTable, read_arrow, read_parquet
from vlm_lora.data.formats.csv_files import read_csv
from vlm_lora.errors import DataError

FILES = 600
TABLE = pa.table(
    {
        "question": ["What?", "x" * 30, "z"],
        "image": [b"abc" * 9, b"", None],
        "answers": [["a", "b"], [], ["c"]],
        "kind": pa.array(["u", "v", "u"]).dictionary_encode(),
    }
)


def read(path: Path) -> ArrowTable:
    return read_parquet(path) if path.suffix == ".parquet" else read_arrow(path)


def write(path: Path) -> bytes:
    if path.suffix == ".parquet":
        pq.write_table(TABLE, path)
    else:
        make = pa.ipc.new_stream if path.suffix == ".arrow" else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as sink, make(sink, TABLE.schema) as writer:
            writer.write_table(TABLE)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", [".arrow", ".feather", ".parquet", ".csv"])
def test_a_file_that_changed_before_a_worker_opens_it_is_noticed(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"train{suffix}"

    def put(text: str) -> None:
        rows = pa.table({"question": [text]})
        other = tmp_path / "other"  # what is mapped into memory is not written over
        if suffix == ".csv":
            other.write_text(f"question\n{text}\n", encoding="utf-8")
        elif suffix == ".parquet":
            pq.write_table(rows, other)
        else:
            make = pa.ipc.new_stream if suffix == ".arrow" else pa.ipc.new_file
            with pa.OSFile(str(other), "wb") as sink, make(sink, rows.schema) as writer:
                writer.write_table(rows)
        other.replace(path)

    put("What?")
    table = read_csv(path) if suffix == ".csv" else read(path)
    sent = pickle.dumps(table)
    assert pickle.loads(sent)[0] == table[0] == {"question": "What?"}, "the control: nothing has changed"
    put("Why is it?")
    with pytest.raises(DataError, match=rf"train\{suffix} was changed while it was in use\. Start again\."):
        pickle.loads(sent)[0]
    path.write_bytes(b"no table")
    with pytest.raises(DataError, match="was changed while"):
        pickle.loads(sent)[0]
    path.unlink()
    with pytest.raises(DataError, match="was changed while"):
        pickle.loads(sent)[0]


@pytest.mark.parametrize("suffix", [".arrow", ".feather", ".parquet"])
def test_damaged_tables_are_read_or_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"train{suffix}"
    whole = write(path)
    good = read(path)
    assert [good[row] for row in range(3)] == TABLE.to_pylist()
    numbers = np.random.default_rng(5)
    outcomes: Counter[str] = Counter()
    for number in range(FILES):
        damaged = bytearray(whole)
        for _ in range(int(numbers.integers(1, 4))):
            damaged[int(numbers.integers(0, len(damaged)))] = (0, 127, 255, int(numbers.integers(256)))[number % 4]
        # A new file each time: the last one is still mapped into memory.
        one = tmp_path / f"{number}{suffix}"
        one.write_bytes(damaged[: len(damaged) // 2] if number % 20 == 0 else damaged)
        try:
            table = read(one)
            for row in range(min(len(table), 3)):
                table[row]
            outcomes["read"] += 1
        except DataError as error:
            assert str(one) in str(error)  # noqa: PT017
            outcomes["refused"] += 1
        one.unlink()
    assert outcomes["read"] > 10, outcomes
    assert outcomes["refused"] > 10, outcomes
