"""A hundred thousand rows take megabytes, not objects: what a million-row check stands on."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

from vlm_lora.batching.row_table import ImageRecord, RowRecord, RowTableBuilder, SampleRecord, open_row_table
from vlm_lora.batching.shapes import RowShape
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.columns.schema import Schema
from vlm_lora.data.dataset import ConversationDataset
from vlm_lora.data.formats.rows import Origin, Rows
from vlm_lora.data.splits import whole
from vlm_lora.preflight.figures import build_report

ROWS = 100_000
MIB = 2**20


class Placeholders:
    """A table that says how long it is."""

    columns = ("question", "answer")

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> dict[str, str]:
        raise AssertionError("the report reads no row")


MEDIA = (("pixel_values", (1, 3, 64, 64), ()),)


def record(row: int) -> RowRecord:
    return RowRecord(
        number=row,
        samples=(SampleRecord(shape=RowShape(media=MEDIA, length=100 + row % 900, supervised=row % 50)),),
        images=(ImageRecord(digest=row.to_bytes(16, "big"), size=(64 + row % 7, 64)),),
        content=row.to_bytes(16, "little"),
        stamp=2**61 + row,
    )


def test_hundred_thousand_rows(tmp_path: Path) -> None:
    rows = Rows([Placeholders()], [Origin(file="train.jsonl", folder=None, first=0)])
    schema = Schema(layout="question_answer", prompt="question", response="answer")
    tracemalloc.start()
    builder = RowTableBuilder(name="train", layout="question_answer")
    for row in range(ROWS):
        builder.add(record(row))
    table = builder.table()
    with (tmp_path / "table").open("wb") as stream:
        table.write(stream)
    made = tracemalloc.get_traced_memory()[1]
    assert made < 40 * MIB
    assert (tmp_path / "table").stat().st_size < 12 * MIB
    del builder, table
    before = tracemalloc.get_traced_memory()[0]
    found = open_row_table(tmp_path / "table")
    opened = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert opened < 2 * MIB, "the arrays stay in the file"
    dataset = ConversationDataset(whole("train", rows), schema, DataConfig())
    tracemalloc.start()
    report = build_report("model", "data", None, "at one size", {"train": (dataset, found)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * MIB
    assert (report.rows, report.splits["train"].tokens.most, report.splits["train"].repeated) == (ROWS, 999, 0)


def test_a_tenth_of_the_rows_as_objects_would_take_more() -> None:
    tracemalloc.start()
    found = [record(row) for row in range(ROWS // 10)]
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept > 2 * MIB
    assert len(found) * 10 == ROWS
