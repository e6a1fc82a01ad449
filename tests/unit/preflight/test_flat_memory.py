"""A hundred thousand rows take megabytes, not objects: what a million-row check stands on."""

from __future__ import annotations

import json
import tracemalloc

from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.columns.schema import Schema
from vlm_lora.data.dataset import ConversationDataset
from vlm_lora.data.formats.rows import Origin, Rows
from vlm_lora.data.splits import whole
from vlm_lora.preflight.figures import build_report
from vlm_lora.preflight.findings import Finding, Findings

ROWS = 100_000
MIB = 2**20


class Placeholders:
    """A table that says how long it is."""

    columns = ("question", "answer")

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> dict[str, str]:
        raise AssertionError("the report reads no row")


def finding(row: int) -> Finding:
    return Finding(
        tokens=100 + row % 900, supervised=row % 50, sizes=((64 + row % 7, 64),), content=2**60 + row, stamp=2**61 + row
    )


def test_hundred_thousand_rows() -> None:
    rows = Rows([Placeholders()], [Origin(file="train.jsonl", folder=None, first=0)])
    schema = Schema(layout="question_answer", prompt="question", response="answer")
    tracemalloc.start()
    found = Findings()
    for row in range(ROWS):
        found.add(finding(row))
    kept = tracemalloc.get_traced_memory()[0]
    text = json.dumps(found.to_mapping())
    del text
    written = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kept < 5 * MIB
    assert written < 30 * MIB
    dataset = ConversationDataset(whole("train", rows), schema, DataConfig())
    tracemalloc.start()
    report = build_report("model", "data", None, {"train": (dataset, found)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * MIB
    assert (report.rows, report.splits["train"].tokens.most, report.splits["train"].repeated) == (ROWS, 999, 0)


def test_a_tenth_of_the_rows_as_objects_would_take_more() -> None:
    tracemalloc.start()
    found = [finding(row) for row in range(ROWS // 10)]
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept > 2 * MIB
    assert len(found) * 10 == ROWS
