"""One row looked at as training will: conversation built, images decoded, rendered, encoded, labels checked."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from vlm_lora.batching.canvases import Size
from vlm_lora.batching.encoded import EncodedRow
from vlm_lora.batching.encoding import RowEncoder
from vlm_lora.batching.image_counts import patches_by_image
from vlm_lora.batching.prepared.media import outlines
from vlm_lora.batching.prepared.pictures import pixel_digest
from vlm_lora.batching.row_table import ImageRecord, RowRecord, SampleRecord
from vlm_lora.batching.shapes import RowShape
from vlm_lora.batching.task_samples import TaskSamples
from vlm_lora.data.conversation import Conversation, ImageRef, Url
from vlm_lora.data.dataset import ConversationDataset
from vlm_lora.data.images.loader import read_size
from vlm_lora.data.images.urls import kept_file
from vlm_lora.data.ocr.task_sampling import ONCE, Span
from vlm_lora.errors import DataError
from vlm_lora.preflight.faults import kind_of


class Inspection:
    """What training would make of row `index`, as a `RowRecord`. Can be pickled into loader workers.

    Args:
        rows: the rows of one split.
        encoder: makes them into tensors.
        span: how often the run draws for each row. One draw that cannot be used makes the row a bad one.
    """

    def __init__(self, rows: ConversationDataset, encoder: RowEncoder, span: Span = ONCE) -> None:
        self._rows = rows
        self._seen = _SeenImages()
        self._samples = TaskSamples(rows, encoder.watched_by(self._seen), span)

    def __call__(self, index: int) -> RowRecord:
        """Return what row `index` is; a fault of the row is in the record, any other error is raised."""
        self._seen.clear()
        number = self._rows.positions[index]
        try:
            choices = self._samples.choices(index)
            conversation = choices.conversations[0]
            # Before the files are read: a change while they are read then shows at the next check.
            files = _stamp_of_files(conversation)
            encoded = self._samples.encoded(index, choices)
            first = next(encoded)
            images = self._seen.records(first)
            content = _content_of(conversation, self._seen.digests)
            shapes = [RowShape.of(first), *(RowShape.of(row) for row in encoded)]
        except DataError as error:
            reason = str(error).removeprefix(f"{self._rows.source(index)}: ")
            return RowRecord(number=number, kind=kind_of(error), reason=one_line(reason))
        return RowRecord(
            number=number,
            # What was looked at in addition is no sample of its own.
            samples=tuple(
                SampleRecord(shape=shape, task=task) for shape, task in zip(shapes, choices.tasks, strict=False)
            ),
            drawn=choices.drawn,
            images=images,
            content=content,
            stamp=files ^ _stamp_of_urls(conversation),
            unanswered=any(
                turn.is_answer and not turn.text.strip() and not turn.tool_calls for turn in conversation.turns
            ),
        )


class HeaderSizes:
    """Width and height of each image of row `index`, from headers alone. Can be pickled into loader workers.

    Args:
        rows: the rows of one split.
    """

    def __init__(self, rows: ConversationDataset) -> None:
        self._rows = rows

    def __call__(self, index: int) -> tuple[Size, ...]:
        """Return the sizes; none of a row that cannot be read, which its inspection says."""
        try:
            return tuple(read_size(image.source) for image in self._rows[index].images)
        except DataError:
            return ()


class Stamping:
    """The `stamp` of row `index` alone: its values are read, no image is. Can be pickled into loader workers."""

    def __init__(self, rows: ConversationDataset) -> None:
        self._rows = rows

    def __call__(self, index: int) -> int:
        """Return the row's stamp, 0 where it names no image file or cannot be read any more."""
        try:
            return stamp_of(self._rows[index])
        except DataError:
            return 0


def one_line(text: str) -> str:
    """Return a text with everything that is no printable character written as an escape.

    Reasons quote the rows, which may hold line breaks, half surrogate pairs and commands to a terminal.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def stamp_of(conversation: Conversation) -> int:
    """Return 64 bits that change when one of a row's image files does (path, size or time); 0 for none.

    A URL's file is the one that keeps what was fetched. One that is gone is a change: it would be fetched afresh.
    """
    return _stamp_of_files(conversation) ^ _stamp_of_urls(conversation)


def _stamp_of_files(conversation: Conversation) -> int:
    return _stamp([image.source for image in conversation.images if isinstance(image.source, Path)], "files")


def _stamp_of_urls(conversation: Conversation) -> int:
    """Return the stamp of what is kept of a row's URLs: it is there once they were loaded, and is never replaced."""
    return _stamp([kept_file(image.source) for image in conversation.images if isinstance(image.source, Url)], "urls")


def _stamp(files: Sequence[Path], kind: str) -> int:
    if not files:
        return 0
    digest = blake2b(kind.encode(), digest_size=8)
    for path in files:
        try:
            status = path.stat()
        except OSError as error:
            digest.update(f"{path}\0{error.errno}\0".encode(errors="surrogateescape"))
        else:
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return int.from_bytes(digest.digest(), "little")


class _SeenImages:
    """Size and digest of each image as the encoder loads it, in reading order."""

    def __init__(self) -> None:
        self.sizes: list[Size] = []
        self.digests: list[bytes] = []

    def clear(self) -> None:
        self.sizes, self.digests = [], []

    def __call__(self, picture: Any) -> None:
        self.sizes.append(picture.size)
        self.digests.append(pixel_digest(picture))

    def records(self, row: EncodedRow) -> tuple[ImageRecord, ...]:
        """Return what is known of each image that was loaded for a row; of a trimmed row the first are left out."""
        kept = len(row.pictures)
        gone = len(self.sizes) - kept
        prepared = [*[(0, 0)] * gone, *(picture.size for picture in row.pictures)]
        tokens = [*[0] * gone, *row.image_tokens]
        patches = [*[0] * gone, *patches_by_image(outlines(row.media), kept)]
        return tuple(
            ImageRecord(digest=digest, size=size, prepared=after, tokens=count, patches=parts)
            for digest, size, after, count, parts in zip(
                self.digests, self.sizes, prepared, tokens, patches, strict=True
            )
        )


def _content_of(conversation: Conversation, pictures: Sequence[bytes]) -> bytes:
    """Hash what a row says; lengths go in, so that no two different rows give the same bytes."""
    digest = blake2b(digest_size=16)
    following = iter(pictures)
    if conversation.tools:
        digest.update(repr(conversation.tools).encode(errors="surrogatepass"))
    for turn in conversation.turns:
        read_only = turn.role == "assistant" and not turn.supervised
        digest.update(f"turn {turn.role}{' read only' if read_only else ''} {len(turn.parts)}\0".encode())
        if any(beside := (turn.reasoning, turn.tool_calls, turn.name, turn.tool_call_id)):
            digest.update(repr(beside).encode(errors="surrogatepass"))
        for part in turn.parts:
            content = next(following) if isinstance(part, ImageRef) else part.text.encode(errors="surrogatepass")
            digest.update(f"{type(part).__name__} {len(content)}\0".encode())
            digest.update(content)
    return digest.digest()
