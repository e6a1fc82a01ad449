"""The row table: everything that is known of a data set's rows once each was read, as arrays that lie in one file.

1. `RowTableBuilder.add` takes a `RowRecord` for each row, in order.
2. `RowTable` holds four arrays and three short lists. `rows` has an entry for each row. A row has one or several
   entries in `samples`, one for each different conversation that a run may make of it (of most rows: one), and an
   entry in `images` for each of its images. `drawn` says which of its samples an epoch reads.
3. `write` puts it into a file behind a hash of it; `open_row_table` compares that hash and maps the file, so all
   processes of a machine share one copy.

A hundred thousand rows with an image each take 11 MB.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vlm_lora.batching.shapes import Media, RowShape, media_of

LONGEST_REASON = 600
"""Characters of a bad row's reason that are kept."""

ROW = np.dtype(
    [
        ("number", "<i8"),  # its position among all rows of its files
        ("content", "<u8", (2,)),  # 128-bit hash of roles, texts and pixels of its first sample
        ("stamp", "<u8"),  # 64-bit hash of its image files' paths, sizes and times; 0 where it names no file
        ("samples", "<u4"),  # how many; none for a bad row
        ("images", "<u4"),  # how many; none for a bad row
        ("longest", "<u4"),  # which of its samples has the most tokens
        ("unanswered", "?"),  # whether a turn of the assistant says nothing
    ]
)
SAMPLE = np.dtype(
    [
        ("task", "<i4"),  # which of `tasks`
        ("media", "<i4"),  # which of `media`: with the tokens the shape that it gives its batch
        ("tokens", "<u4"),  # after `--on_overflow` had its way
        ("supervised", "<u4"),  # tokens that the model must produce
    ]
)
IMAGE = np.dtype(
    [
        ("digest", "<u8", (2,)),  # 128-bit hash of its pixels
        ("width", "<u4"),  # as stored, upright
        ("height", "<u4"),
        ("prepared_width", "<u4"),  # as handed to the model's processor; 0 where `trim_turns` left it out
        ("prepared_height", "<u4"),
        ("tokens", "<u4"),  # 0 where they cannot be told from those of the row's other images
        ("patches", "<u4"),  # patches, or tiles where the model has no grid; 0 as above
    ]
)
_ALIGNMENT = 64
_MAGIC = b"vlm-lora row table 2\n"
_DIGEST = 32
"""Bytes of the hash behind the mark, in hexadecimal digits: of all that follows."""
_CHUNK = 1024
_PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class SampleRecord:
    """One conversation that a run may make of a row, encoded."""

    shape: RowShape
    task: str = ""
    """What is asked where a page may be asked several things; else empty."""


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """One image of a row."""

    digest: bytes
    """16 bytes."""
    size: tuple[int, int]
    """Width and height in pixels, as stored, upright."""
    prepared: tuple[int, int] = (0, 0)
    tokens: int = 0
    patches: int = 0


@dataclass(frozen=True, kw_only=True)
class RowRecord:
    """One row as it was read."""

    number: int = 0
    samples: tuple[SampleRecord, ...] = ()
    """The first epoch's comes first."""
    drawn: tuple[int, ...] = ()
    """Which sample each draw is, epoch by epoch; empty where all draws are of one, or nothing counts them."""
    images: tuple[ImageRecord, ...] = ()
    content: bytes = bytes(16)
    stamp: int = 0
    unanswered: bool = False
    kind: str = ""
    """The kind of fault; empty for a good row, and nothing else is said of a bad one."""
    reason: str = ""
    """What is wrong, without file and row."""


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that training would refuse."""

    index: int
    """Its number within the split, counting from 0."""
    kind: str
    reason: str


class RowTable:
    """What is known of the rows of one data set. See the module for what lies where, and `ROW` and so on for fields.

    Args:
        name: the data set, as the log names it.
        layout: what its rows are (`question_answer`, `messages`, ...).
        rows: `(R,)` of `ROW`.
        samples: `(S,)` of `SAMPLE`, those of a row together.
        images: `(I,)` of `IMAGE`, those of a row together.
        drawn: `(R, D)` uint16: which of its samples draw d of a row is; D is 0 where no row varies or draws are not
            counted.
        tasks: names of tasks.
        media: what samples contribute to the shape of their batch's media tensors.
        bad: the rows that training would refuse, in order.
    """

    def __init__(
        self,
        *,
        name: str,
        layout: str,
        rows: Any,
        samples: Any,
        images: Any,
        drawn: Any,
        tasks: Sequence[str] = (),
        media: Sequence[Media] = (),
        bad: Sequence[BadRow] = (),
    ) -> None:
        self.name, self.layout = name, layout
        self.rows, self.samples, self.images, self.drawn = rows, samples, images, drawn
        self.tasks, self.media, self.bad = tuple(tasks), tuple(media), tuple(bad)
        self._first_sample = _starts(rows["samples"])

    def __len__(self) -> int:
        return len(self.rows)

    def good(self) -> Any:
        """Return `(R,)` bool: the rows that can be used."""
        mask = np.ones(len(self), dtype=bool)
        mask[[row.index for row in self.bad]] = False
        return mask

    def longest(self, field: str) -> Any:
        """Return `(R,)` int64: a field of each row's longest sample; 0 for bad rows."""
        good = self.good()
        found = np.zeros(len(self), dtype=np.int64)
        found[good] = self.samples[field][(self._first_sample + self.rows["longest"])[good]]
        return found

    def shape(self, index: int, draw: int = 0) -> RowShape:
        """Return what a good row contributes to its batch's shape, in one of its draws."""
        which = int(self.drawn[index, draw]) if self.drawn.shape[1] else 0
        sample = self.samples[self._first_sample[index] + which]
        return RowShape(
            media=self.media[sample["media"]], length=int(sample["tokens"]), supervised=int(sample["supervised"])
        )

    def image_owners(self) -> Any:
        """Return `(I,)` int64: the row of each image."""
        return np.repeat(np.arange(len(self)), self.rows["images"])

    def take(self, kept: Any) -> RowTable:
        """Return the table of some rows alone: `(R,)` bool says which. No bad row is in it."""
        kept = np.asarray(kept) & self.good()
        return RowTable(
            name=self.name,
            layout=self.layout,
            rows=self.rows[kept],
            samples=self.samples[np.repeat(kept, self.rows["samples"])],
            images=self.images[np.repeat(kept, self.rows["images"])],
            drawn=self.drawn[kept],
            tasks=self.tasks,
            media=self.media,
        )

    def fingerprint(self) -> str:
        """Return a hash of what the rows say, in their order."""
        return blake2b(np.ascontiguousarray(self.rows["content"]).tobytes(), digest_size=16).hexdigest()

    def write(self, stream: BinaryIO, *, key: str = "") -> None:
        """Write the table: mark, hash, a line of JSON, then the arrays.

        Args:
            stream: where to.
            key: what the table is kept by; who reads it says the same.
        """
        arrays = {"rows": self.rows, "samples": self.samples, "images": self.images, "drawn": self.drawn}
        header = {
            "key": key,
            "name": self.name,
            "layout": self.layout,
            "tasks": self.tasks,
            "media": self.media,
            "bad": [asdict(row) for row in self.bad],
            "sizes": {name: array.shape for name, array in arrays.items()},
        }
        line = json.dumps(header).encode("ascii") + b"\n"
        pieces = [line + bytes(-(len(_MAGIC) + _DIGEST + len(line)) % _ALIGNMENT)]
        for array in arrays.values():
            content = np.ascontiguousarray(array).tobytes()
            pieces.append(content + bytes(-len(content) % _ALIGNMENT))
        digest = blake2b(digest_size=_DIGEST // 2)
        for piece in pieces:
            digest.update(piece)
        stream.writelines([_MAGIC, digest.hexdigest().encode("ascii"), *pieces])


def open_row_table(path: Path, *, key: str = "") -> RowTable:
    """Map a table that `RowTable.write` wrote.

    Raises:
        OSError: it cannot be read.
        ValueError, KeyError, TypeError: it is none, not as it was written, or kept by another key.
    """
    with path.open("rb") as stream:
        if stream.readline(len(_MAGIC)) != _MAGIC:
            raise ValueError("it is no row table of this version")
        expected = stream.read(_DIGEST)
        start, digest = stream.tell(), blake2b(digest_size=_DIGEST // 2)
        while piece := stream.read(_PIECE):
            digest.update(piece)
        if digest.hexdigest().encode("ascii") != expected:
            raise ValueError("it is cut off, or its bytes are not those that were written")
        stream.seek(start)
        header = json.loads(stream.readline())
        position = stream.tell()
    if header["key"] != key:
        raise ValueError("it is the table of other rows or settings")
    arrays = {}
    for name, kind in (("rows", ROW), ("samples", SAMPLE), ("images", IMAGE), ("drawn", np.dtype("<u2"))):
        position += -position % _ALIGNMENT
        shape = tuple(header["sizes"][name])
        size = int(np.prod(shape)) * kind.itemsize
        # A file cannot be mapped for nothing.
        arrays[name] = np.memmap(path, kind, "r", position, shape) if size else np.zeros(shape, kind)
        position += size
    return RowTable(
        name=header["name"],
        layout=header["layout"],
        **arrays,
        tasks=header["tasks"],
        media=[media_of(values) for values in header["media"]],
        bad=[BadRow(**row) for row in header["bad"]],
    )


class RowTableBuilder:
    """Takes rows in order and puts them into arrays, a thousand at a time."""

    def __init__(self, *, name: str, layout: str) -> None:
        self._name, self._layout = name, layout
        self._tasks: dict[str, int] = {}
        self._media: dict[Media, int] = {}
        self._bad: list[BadRow] = []
        self._rows, self._samples, self._images = _Growing(ROW), _Growing(SAMPLE), _Growing(IMAGE)
        self._drawn: list[tuple[int, ...]] = []
        self._count = 0

    def add(self, record: RowRecord) -> None:
        """Add the next row."""
        if record.kind:
            reason = record.reason
            shown = reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]}..."
            self._bad.append(BadRow(index=self._count, kind=record.kind, reason=shown))
            record = RowRecord(number=record.number)
        self._count += 1
        lengths = [sample.shape.length for sample in record.samples]
        longest = lengths.index(max(lengths)) if lengths else 0
        content = tuple(np.frombuffer(record.content, "<u8"))
        counts = (len(record.samples), len(record.images), longest)
        self._rows.add((record.number, content, record.stamp, *counts, record.unanswered))
        for sample in record.samples:
            task = self._tasks.setdefault(sample.task, len(self._tasks))
            media = self._media.setdefault(sample.shape.media, len(self._media))
            self._samples.add((task, media, sample.shape.length, sample.shape.supervised))
        for image in record.images:
            digest = tuple(np.frombuffer(image.digest, "<u8"))
            self._images.add((digest, *image.size, *image.prepared, image.tokens, image.patches))
        self._drawn.append(record.drawn)

    def table(self) -> RowTable:
        """Return the table of all rows that were added."""
        draws = max((len(drawn) for drawn in self._drawn), default=0)
        drawn = np.zeros((self._count, draws), dtype="<u2")
        for index, numbers in enumerate(self._drawn if draws else ()):
            drawn[index, : len(numbers)] = numbers
        return RowTable(
            name=self._name,
            layout=self._layout,
            rows=self._rows.array(),
            samples=self._samples.array(),
            images=self._images.array(),
            drawn=drawn,
            tasks=tuple(self._tasks),
            media=tuple(self._media),
            bad=self._bad,
        )


class _Growing:
    """An array of records that grows; its end are tuples for a while, which take ten times the room."""

    def __init__(self, kind: np.dtype[Any]) -> None:
        self._kind = kind
        self._whole: list[Any] = []
        self._end: list[tuple[Any, ...]] = []

    def add(self, record: tuple[Any, ...]) -> None:
        self._end.append(record)
        if len(self._end) == _CHUNK:
            self._close()

    def array(self) -> Any:
        self._close()
        return np.concatenate(self._whole)

    def _close(self) -> None:
        self._whole.append(np.array(self._end, dtype=self._kind))
        self._end = []


def _starts(counts: Any) -> Any:
    """Return where each of several stretches begins that lie one behind the other."""
    return np.cumsum(counts, dtype=np.int64) - counts
