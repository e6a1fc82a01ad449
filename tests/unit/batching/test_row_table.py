"""The row table: what goes in comes out, also of its file, and what is no whole table is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vlm_lora.batching.row_table import (
    ImageRecord,
    RowRecord,
    RowTable,
    RowTableBuilder,
    SampleRecord,
    open_row_table,
)
from vlm_lora.batching.shapes import RowShape

WIDE = (("image_grid_thw", (1, 3), (1, 2, 4)), ("pixel_values", (8, 12), ()))
SHAPES = (
    RowShape(media=WIDE, length=40, supervised=3),
    RowShape(media=WIDE, length=70, supervised=9),
    RowShape(media=(), length=12, supervised=2),
)
IMAGE = ImageRecord(digest=b"0123456789abcdef", size=(40, 20), prepared=(56, 28), tokens=2, patches=8)
PAGE = RowRecord(
    number=5,
    samples=(SampleRecord(shape=SHAPES[0], task="reading"), SampleRecord(shape=SHAPES[1], task="detection")),
    drawn=(0, 1, 0),
    images=(IMAGE,),
    content=b"p" * 16,
    stamp=2**64 - 1,
)
TEXT = RowRecord(number=9, samples=(SampleRecord(shape=SHAPES[2]),), content=b"t" * 16, unanswered=True)
BAD = RowRecord(number=7, kind="row", reason="x" * 1000)


def table_of(*records: RowRecord) -> RowTable:
    builder = RowTableBuilder(name="train", layout="page")
    for record in records:
        builder.add(record)
    return builder.table()


@pytest.fixture(params=["in memory", "of its file"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> RowTable:
    made = table_of(PAGE, BAD, TEXT)
    if request.param == "in memory":
        return made
    with (tmp_path / "table").open("wb") as stream:
        made.write(stream)
    opened = open_row_table(tmp_path / "table")
    assert isinstance(opened.rows, np.memmap)
    return opened


def test_what_went_in_comes_out(table: RowTable) -> None:
    assert (table.name, table.layout, len(table)) == ("train", "page", 3)
    assert table.rows["number"].tolist() == [5, 7, 9]
    assert [row.tobytes() for row in table.rows["content"]] == [b"p" * 16, bytes(16), b"t" * 16]
    assert table.rows["stamp"].tolist() == [2**64 - 1, 0, 0]
    assert table.rows["unanswered"].tolist() == [False, False, True]
    assert [table.tasks[sample["task"]] for sample in table.samples] == ["reading", "detection", ""]
    assert table.images.tolist()[0][1:] == (40, 20, 56, 28, 2, 8)
    assert table.images["digest"].tobytes() == IMAGE.digest
    assert table.image_owners().tolist() == [0]
    assert (table.good().tolist(), table.bad[0].index, table.bad[0].kind) == ([True, False, True], 1, "row")
    assert len(table.bad[0].reason) < 1000


def test_a_row_has_the_shape_of_its_draw_and_the_figures_of_its_longest_sample(table: RowTable) -> None:
    assert [table.shape(0, draw) for draw in range(3)] == [SHAPES[0], SHAPES[1], SHAPES[0]]
    assert table.shape(2) == SHAPES[2]
    assert table.longest("tokens").tolist() == [70, 0, 12]
    assert table.longest("supervised").tolist() == [9, 0, 2]


def test_some_rows_alone(table: RowTable) -> None:
    text = table.take([False, True, True])
    assert (len(text), len(text.images), text.bad, text.shape(0)) == (1, 0, (), SHAPES[2])
    page = table.take([True, True, False])
    assert (page.shape(0, 1), page.image_owners().tolist(), page.longest("tokens").tolist()) == (SHAPES[1], [0], [70])


def test_the_fingerprint_is_of_what_rows_say_in_their_order(table: RowTable) -> None:
    assert table.fingerprint() == table_of(PAGE, BAD, TEXT).fingerprint()
    others = [(TEXT, BAD, PAGE), (PAGE, TEXT), (PAGE, BAD)]
    assert len({table.fingerprint(), *(table_of(*records).fingerprint() for records in others)}) == 4


def test_no_rows() -> None:
    assert (len(table_of()), table_of().longest("tokens").tolist()) == (0, [])


@pytest.mark.parametrize("damage", ["cut off", "one bit", "another version", "no header", "empty"])
def test_what_is_no_whole_table_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "table"
    with path.open("wb") as stream:
        table_of(PAGE, BAD, TEXT).write(stream)
    content = path.read_bytes()
    mark, _, rest = content.partition(b"\n")
    found = {
        "cut off": (content[:-70], "cut off"),
        "one bit": (content[:-70] + bytes([content[-70] ^ 1]) + content[-69:], "not those that were written"),
        "another version": (mark.replace(b"2", b"1") + b"\n" + rest, "no row table of this version"),
        "no header": (mark + b"\nno json\n" + rest, "not those that were written"),
        "empty": (b"", "no row table of this version"),
    }
    path.write_bytes(found[damage][0])
    with pytest.raises(ValueError, match=found[damage][1]):
        open_row_table(path)


def test_a_table_of_another_key_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "table").open("wb") as stream:
        table_of(TEXT).write(stream, key="a")
    assert len(open_row_table(tmp_path / "table", key="a")) == 1
    with pytest.raises(ValueError, match="other rows or settings"):
        open_row_table(tmp_path / "table", key="b")
