"""The worst batch of a data set, from a sample of its rows, or from an assumption that was set."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import pad

from vlm_lora.batching.collator import Collator, supervised_positions
from vlm_lora.batching.encoded import IGNORE_INDEX, EncodedRow
from vlm_lora.batching.encoding import RowEncoder
from vlm_lora.batching.shapes import RowShape
from vlm_lora.data.conversation import Conversation, ImageRef, Part, RowSource, Text, Turn
from vlm_lora.errors import ConfigError, DataError, RenderingError

KEPT = 64
"""The longest rows are kept for the batch, at most so many."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What decides how long the rows of a data set take."""

    lengths: tuple[int, ...]
    """Tokens of each row that was read."""
    supervised: float
    """Supervised tokens of a row, the mean."""
    pixels: float
    """Values of the image tensors of a row, the mean."""
    total: int | None
    """Rows of the whole data; None where none was named."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Rows that a batch may be made of."""

    rows: tuple[EncodedRow, ...]
    """Longest first."""
    is_everything: bool
    """Whether the sample is the whole data: only then do the longest rows meet in one batch as they are."""
    supervised: int
    """Most supervised tokens of a row."""
    note: str
    """What was measured or assumed, in words."""
    read: Rows
    """What all rows that were read are like."""

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return len(self.rows[0].input_ids)


@dataclass(frozen=True, kw_only=True)
class Assumption:
    """What a row is taken to be where there is no data."""

    tokens: int
    """Tokens of a row, images included."""
    answer_tokens: int
    pictures: int
    picture_size: tuple[int, int]
    """Width and height in pixels."""

    def scaled(self, side: float) -> Assumption:
        """Return the same row with images of this share of their width and height."""
        width, height = (max(1, round(length * side)) for length in self.picture_size)
        return replace(self, picture_size=(width, height))


def sample_rows(encoder: RowEncoder, data: Any, *, count: int, picture_side: float = 1.0) -> Sample:
    """Encode `count` rows spread evenly over the data.

    Args:
        encoder: makes the rows.
        data: conversations by number.
        count: at most so many.
        picture_side: images are scaled to this share of their width and height first.

    Raises:
        RenderingError, ImageError: a row cannot be encoded; the message names it.
        DataError: `--on_overflow drop` leaves out all of them.
    """
    total = len(data)
    count = min(count, total)
    chosen = [place * (total - 1) // max(1, count - 1) for place in range(count)]
    scaled = (_scaled(data[index], encoder, picture_side) for index in chosen)
    rows = [_without_pictures(row) for one in scaled if (row := encoder.encode_kept(one, keep_images=True)) is not None]
    if not rows:
        raise DataError(f"--on_overflow drop: all {count} rows that were read are too long. Raise --max_length.")
    rows.sort(key=lambda row: -len(row.input_ids))
    lengths = [len(row.input_ids) for row in rows]
    supervised = max(_supervised(row) for row in rows)
    elements = max((tensor.numel() for row in rows for tensor in row.media.values()), default=0)
    note = (
        f"{len(rows)} of {total} rows: {lengths[0]} tokens in the longest, {statistics.median_low(lengths)} in the "
        f"median, at most {supervised} supervised{_media_note(elements)}{_tokens_note(rows)}"
    )
    read = _read([RowShape.of(row) for row in rows], total)
    return Sample(
        rows=tuple(rows[:KEPT]), is_everything=len(rows) == total, supervised=supervised, note=note, read=read
    )


def longest_rows(encoder: RowEncoder, data: Any, shapes: Sequence[RowShape]) -> Sample:
    """Encode the longest rows of a data set that was read before.

    Args:
        encoder: makes the rows.
        data: conversations by number.
        shapes: what each of them contributes to its batch's shape.

    Raises:
        RenderingError, ImageError: a row cannot be encoded any more; the message names it.
    """
    order = sorted(range(len(shapes)), key=lambda index: -shapes[index].length)
    supervised = max(shape.supervised for shape in shapes)
    elements = max((prod(size) for shape in shapes for _, size, _ in shape.media), default=0)
    median = statistics.median_low(shape.length for shape in shapes)
    rows = tuple(_without_pictures(encoder.encode(data[index], keep_images=True)) for index in order[:KEPT])
    note = (
        f"all {len(shapes)} rows, as they were checked: {shapes[order[0]].length} tokens in the longest, {median} in "
        f"the median, at most {supervised} supervised{_media_note(elements)}{_tokens_note(rows)}"
    )
    read = _read(shapes, len(shapes))
    return Sample(rows=rows, is_everything=True, supervised=supervised, note=note, read=read)


def assume_rows(encoder: RowEncoder, assumption: Assumption) -> Sample:
    """Make one row of the assumed size.

    Raises:
        ConfigError: the images alone take more tokens than the whole row is said to have.
    """
    picture = Image.new("RGB", assumption.picture_size)
    parts: tuple[Part, ...] = (*(ImageRef(source=picture) for _ in range(assumption.pictures)), Text(text="?"))
    turns = (Turn(role="user", parts=parts), Turn(role="assistant", parts=(Text(text="!"),)))
    try:
        assumed = Conversation(turns=turns, source=RowSource(file="the assumed row"))
        row = _without_pictures(encoder.encode(assumed, keep_images=True))
    except RenderingError as error:
        raise ConfigError(
            f"--max_length {assumption.tokens} is too little for {_pictures(assumption)}: {error}"
        ) from error
    note = (
        f"assumed, no data was read: rows of {assumption.tokens} tokens (--max_length), {_pictures(assumption)}, "
        f"{assumption.answer_tokens} supervised (--answer_tokens){_tokens_note([row])}"
    )
    answer = min(assumption.answer_tokens, assumption.tokens - 1)
    long = lengthened(row, assumption.tokens, answer)
    read = _read([RowShape.of(long)], None)
    return Sample(rows=(long,), is_everything=False, supervised=answer, note=note, read=read)


def _read(shapes: Sequence[RowShape], total: int | None) -> Rows:
    pixels = [prod(size) for shape in shapes for name, size, _ in shape.media if name.startswith("pixel_values")]
    return Rows(
        lengths=tuple(shape.length for shape in shapes),
        supervised=statistics.fmean(shape.supervised for shape in shapes),
        pixels=sum(pixels) / len(shapes),
        total=total,
    )


def worst_batch(sample: Sample, collator: Collator, batch_size: int) -> dict[str, torch.Tensor]:
    """Return the batch that needs most: the longest rows together, and room for the longest answer in each.

    Where only a sample was read, the longest row stands for all: the whole data has more rows of its kind.
    """
    rows = list(sample.rows[:batch_size]) if sample.is_everything else [sample.rows[0]]
    rows = (rows * batch_size)[:batch_size]
    # A plan is of the step that reads pixels, also where it is asked for in a run that keeps features.
    batch = collator.with_pixels().collate(rows)
    batch["supervised_positions"] = supervised_positions(batch["labels"], least=sample.supervised)
    return batch


def _pictures(assumption: Assumption) -> str:
    width, height = assumption.picture_size
    count = assumption.pictures
    return f"{count} {'image' if count == 1 else 'images'} of {width}x{height} (--images, --assumed_size)"


def _supervised(row: EncodedRow) -> int:
    return int(row.labels[1:].ne(IGNORE_INDEX).sum())


def _without_pictures(row: EncodedRow) -> EncodedRow:
    """Let go of the images, which only had to be kept for their tokens to be counted."""
    return replace(row, pictures=())


def _tokens_note(rows: Sequence[EncodedRow]) -> str:
    """Say how many tokens an image is; nothing where that cannot be told."""
    counts = [count for row in rows for count in row.image_tokens if count]
    if not counts:
        return ""
    return (
        f", {min(counts)} to {max(counts)} tokens an image"
        if min(counts) < max(counts)
        else f", {counts[0]} tokens an image"
    )


def _media_note(elements: int) -> str:
    return f", images of up to {elements:,} values" if elements else ", no images"


def _scaled(row: Conversation, encoder: RowEncoder, side: float) -> Conversation:
    if side == 1.0:
        return row
    return replace(row, turns=tuple(replace(turn, parts=tuple(_parts(turn, encoder, side))) for turn in row.turns))


def _parts(turn: Turn, encoder: RowEncoder, side: float) -> Iterable[Part]:
    for part in turn.parts:
        if isinstance(part, ImageRef):
            picture = encoder.picture(part)
            size = [max(1, round(length * side)) for length in picture.size]
            yield ImageRef(source=picture.resize(size))
        else:
            # Boxes are for the image as it is stored; their tokens are as many in any unit, or nearly.
            yield Text(text=part.text)


def lengthened(row: EncodedRow, tokens: int, answer: int) -> EncodedRow:
    """Repeat the last token up to `tokens`; the last `answer` are supervised."""
    missing = tokens - len(row.input_ids)
    labels = torch.full((tokens,), IGNORE_INDEX)
    ids = torch.cat([row.input_ids, row.input_ids[-1:].expand(missing)])
    labels[tokens - answer :] = ids[tokens - answer :]
    extra = {
        name: pad(tensor, (*([0, 0] * (tensor.dim() - 1)), 0, missing)) for name, tensor in row.token_tensors.items()
    }
    return replace(row, input_ids=ids, labels=labels, token_tensors=extra)
