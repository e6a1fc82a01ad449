"""Rows of different lengths to one batch, and which rows it is of, which travels with it on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch.nn.functional import pad

from vlm_lora.batching.blank import blank_conversation, with_blank
from vlm_lora.batching.encoded import IGNORE_INDEX, EncodedRow
from vlm_lora.batching.encoding import RowEncoder
from vlm_lora.batching.ordering.rows import Filler
from vlm_lora.batching.prepared.media import join_levels
from vlm_lora.batching.shapes import RowShape, ShapePlan
from vlm_lora.batching.style import MediaBatching, RenderingStyle
from vlm_lora.data.conversation import Conversation

PROMPT_STEP = 64
"""With a plan, prompts are padded to multiples of this many tokens."""


FEATURES = "features"
"""The batch's key for features of its rows' images, in place of their media tensors."""


class FeatureSource(Protocol):
    """What gives a batch the features of images. Can be pickled into loader workers."""

    read_beside: Sequence[str]
    """Names of media tensors that the model reads itself, which stay in the batch."""

    def __call__(self, rows: Sequence[EncodedRow]) -> tuple[object | None, ...]:
        """Return the features of each row, in order; None where a row has no image."""


class Collator:
    """Encodes conversations and pads them to one batch; a `DataLoader`'s `collate_fn`.

    Args:
        encoder: makes the rows.
        style: says how media tensors are batched.
        pad_token_id: what pads `input_ids`.
        plan: pads every batch to one of its shapes; None pads to the longest row.

    Example: two rows of 5 and 3 tokens, the answers `[8, 2]` and `[7, 2]` (2 is eos), pad token 0.

        >>> collator.collate([long, short])  # doctest: +SKIP
        {"input_ids":            [[1, 5, 6, 8, 2],
                                  [1, 7, 2, 0, 0]],
         "attention_mask":       [[1, 1, 1, 1, 1],
                                  [1, 1, 1, 0, 0]],
         "labels":               [[-100, -100, -100,    8,    2],
                                  [-100,    7,    2, -100, -100]],
         "supervised_positions": [[2, 3],
                                  [0, 1]]}
    """

    def __init__(
        self,
        encoder: RowEncoder,
        style: RenderingStyle,
        *,
        pad_token_id: int,
        plan: ShapePlan | None = None,
    ) -> None:
        self._encoder = encoder
        self._style = style
        self._pad_token_id = pad_token_id
        self._plan = plan
        self._blank: EncodedRow | None = None
        self._features: FeatureSource | None = None

    def take_features(self, source: FeatureSource) -> None:
        """From now on, put what `source` gives for rows' images into batches for training and scoring, as `FEATURES`.

        Prompts for generation keep their pixels.
        """
        self._features = source

    def with_pixels(self) -> Collator:
        """Return a collator as this one whose batches hold images, whatever features this one takes."""
        other = copy(self)
        other._features = None
        return other

    def require_images(self) -> None:
        """From now on, put a blank image into every batch that has none (see `batching.blank`).

        Raises:
            RenderingError: the model's template cannot write an image.
        """
        self._blank = self._encoder.encode(blank_conversation())

    def __call__(self, rows: Sequence[Conversation | Filler]) -> dict[str, torch.Tensor]:
        """Encode and pad rows for training.

        Returns:
            `input_ids`, `attention_mask`, `labels`: `(B, T)` int64, padded on the right;
            `supervised_positions`: `(B, K)` int64, the positions whose *next* token is supervised, K the
            most in this batch (or its planned shape), padded with -1; the rows' per-token tensors `(B, T, ...)`
            padded with 0; their media tensors, joined as the style says.

        Raises:
            RenderingError, ImageError: a row cannot be encoded.
        """
        return self.collate([self._encoded(row) for row in rows])

    def prompt_batch(self, rows: Sequence[Conversation]) -> dict[str, torch.Tensor]:
        """Encode and pad prompts for generation, on the left so that answers start in one column.

        Returns:
            `input_ids`, `attention_mask`: `(B, T)` int64; per-token and media tensors as in training.

        Raises:
            RenderingError, ImageError: a row cannot be encoded.
        """
        return self.pad_prompts(self.prompts(rows))

    def prompts(self, rows: Sequence[Conversation]) -> list[EncodedRow]:
        """Encode prompts, not padded yet.

        Raises:
            RenderingError, ImageError: a row cannot be encoded.
        """
        return [self._encoder.encode_prompt(row) for row in rows]

    def pad_prompts(
        self, encoded: Sequence[EncodedRow], *, length: int | None = None, rows: int | None = None
    ) -> dict[str, torch.Tensor]:
        """Pad encoded prompts to one batch, as `prompt_batch`.

        Args:
            encoded: the prompts; rows that follow them in the batch are fillers.
            length: tokens to pad them to, where they are not more; by default those of the longest.
            rows: rows to fill the batch up to, by repeating the first prompt.
        """
        if rows is not None:
            encoded = [*encoded, *[encoded[0]] * (rows - len(encoded))]
        if self._blank is not None and not any(row.media for row in encoded):
            encoded = [*encoded, self._encoder.encode_prompt(blank_conversation())]
        longest = max(len(row.input_ids) for row in encoded)
        if length is None or length < longest:
            length = longest if self._plan is None else -(-longest // PROMPT_STEP) * PROMPT_STEP
        batch = self._padded(encoded, length, left=True)
        del batch["labels"]
        return batch

    def planned_length(self, row: Conversation) -> int | None:
        """Return the tokens that a batch of rows of this one's planned shape is padded to; None without a plan."""
        return None if self._plan is None else self._plan.cover([RowShape.of(self._encoder.encode(row))]).length

    def produced(self, row: Conversation, tokenizer: Any) -> str:
        """Return what the model would have to generate for a row's last answer, special tokens left out.

        Raises:
            RenderingError, ImageError: the row cannot be encoded.
        """
        labels = self._encoder.encode(row).labels.tolist()
        end = max(place for place, label in enumerate(labels) if label != IGNORE_INDEX) + 1
        start = max(place for place, label in enumerate(labels[:end]) if label == IGNORE_INDEX) + 1
        text: str = tokenizer.decode(labels[start:end], skip_special_tokens=True)
        return text

    def collate(self, rows: Sequence[EncodedRow]) -> dict[str, Any]:
        """Pad rows that are already encoded, as `__call__`."""
        if self._plan is None:
            length, supervised = max(len(row.input_ids) for row in rows), 1
        else:
            shape = self._plan.cover([RowShape.of(row) for row in rows])
            length, supervised = shape.length, shape.supervised
        if self._blank is not None and not any(row.media for row in rows):
            rows = with_blank(rows, self._blank)
            # A planned shape stays one shape: it grows by the blank turn, whichever row that stands behind.
            longest = max(len(row.input_ids) for row in rows)
            length = longest if self._plan is None else length + len(self._blank.input_ids)
        batch = self._padded(rows, length, left=False, features=self._features)
        batch["supervised_positions"] = supervised_positions(batch["labels"], least=supervised)
        return batch

    def _encoded(self, row: Conversation | Filler) -> EncodedRow:
        if isinstance(row, Conversation):
            return self._encoder.encode(row)
        encoded = self._encoder.encode(row.row)
        return replace(encoded, labels=torch.full_like(encoded.labels, IGNORE_INDEX))

    def _padded(
        self, rows: Sequence[EncodedRow], length: int, *, left: bool, features: FeatureSource | None = None
    ) -> dict[str, Any]:
        ones = [torch.ones_like(row.input_ids) for row in rows]
        ids = [row.input_ids for row in rows]
        batch: dict[str, Any] = {
            "input_ids": _stacked(ids, length, self._pad_token_id, left=left),
            "attention_mask": _stacked(ones, length, 0, left=left),
            "labels": _stacked([row.labels for row in rows], length, IGNORE_INDEX, left=left),
        }
        for name in dict.fromkeys(name for row in rows for name in row.token_tensors):
            batch[name] = _token_tensor(name, rows, length, left=left)
        names = list(dict.fromkeys(name for row in rows for name in row.media))
        if features is not None and names:
            batch[FEATURES] = features(rows)
            names = [name for name in names if name in features.read_beside]
        for name in names:
            batch[name] = join_rows_media(rows, name, self._style.batching(name))
        return batch


def supervised_positions(labels: torch.Tensor, *, least: int = 1) -> torch.Tensor:
    """Return `(B, K)` int64: the positions t where `labels[:, t + 1]` is supervised, padded with -1.

    Args:
        labels: `(B, T)` int64.
        least: K is at least this.

    >>> supervised_positions(torch.tensor([[-100, 4, 5], [-100, -100, 6]]))
    tensor([[ 0,  1],
            [ 1, -1]])
    """
    rows = [row[1:].ne(IGNORE_INDEX).nonzero().flatten() for row in labels]
    return _stacked(rows, max(least, *(len(row) for row in rows)), -1, left=False)


def join_rows_media(rows: Sequence[EncodedRow], name: str, batching: MediaBatching) -> torch.Tensor:
    """Join one media tensor of several rows as `join_media`; pixel values that lie as levels are made where they go."""
    levels = join_levels([row.media for row in rows], name)
    return join_media([row.media.get(name) for row in rows], batching) if levels is None else levels


def join_media(tensors: Sequence[torch.Tensor | None], batching: MediaBatching) -> torch.Tensor:
    """Join one media tensor of several rows along dim 0.

    Args:
        tensors: one per row, `(n, ...)`, None where a row has no media; at least one is not None. With
            `batching.leading == "row"`, n is 1.
        batching: what dim 0 counts and what padding holds.

    Returns:
        `(sum of n, ...)`, other dimensions padded at their end to the longest; with `leading == "row"`,
        `(B, ...)`.
    """
    present = [tensor for tensor in tensors if tensor is not None]
    sizes = [max(tensor.shape[dim] for tensor in present) for dim in range(1, present[0].dim())]
    joined: list[torch.Tensor] = []
    for tensor in tensors:
        if tensor is None:
            if batching.leading == "media":
                continue
            tensor = present[0].new_empty(1, *([0] * len(sizes)))
        joined.append(_grown(tensor, sizes, batching))
    whole = torch.cat(joined)
    # Llama 4's processor returns bfloat16, which a model in float32 cannot read.
    return whole.float() if whole.dtype == torch.bfloat16 else whole


def _grown(tensor: torch.Tensor, sizes: Sequence[int], batching: MediaBatching) -> torch.Tensor:
    """Pad `(n, ...)` at the end of every dimension but the first."""
    missing = [size - have for size, have in zip(sizes, tensor.shape[1:], strict=True)]
    if not any(missing):
        return tensor
    widths = [width for amount in reversed(missing) for width in (0, amount)]
    grown = pad(tensor, widths, value=batching.pad_value)
    if batching.first_tile_on:
        grown[..., 0] = 1
    return grown


def _stacked(rows: Sequence[torch.Tensor], length: int, value: int, *, left: bool) -> torch.Tensor:
    """Pad `(t, ...)` tensors along dim 0 and stack them to `(B, length, ...)`."""
    stacked = rows[0].new_full((len(rows), length, *rows[0].shape[1:]), value)
    for target, row in zip(stacked, rows, strict=True):
        if left:
            target[length - len(row) :] = row
        else:
            target[: len(row)] = row
    return stacked


def _token_tensor(name: str, rows: Sequence[EncodedRow], length: int, *, left: bool) -> torch.Tensor:
    """Stack one per-token tensor; its further dimensions (images, tiles) grow to the largest of the batch."""
    present = [row.token_tensors[name] for row in rows if name in row.token_tensors]
    sizes = [max(tensor.shape[dim] for tensor in present) for dim in range(1, present[0].dim())]
    filled = []
    for row in rows:
        tensor = row.token_tensors.get(name)
        if tensor is None:  # a row without images in a batch with some
            tensor = present[0].new_zeros(len(row.input_ids), *sizes)
        filled.append(_grown(tensor, sizes, MediaBatching()))
    return _stacked(filled, length, 0, left=left)


ROWS = "rows"
"""The batch's key for which rows it is of: a tuple of `BatchRow`, which no loader moves to a device."""

SUPERVISED = "supervised"
"""The batch's key for its number of supervised tokens, an int: who needs it need not read it from a device."""


FED = "fed"
"""The batch's key for how much it holds, a `Fed`, counted before it is on a device."""


@dataclass(frozen=True)
class Fed:
    """How much a batch holds, or several together; in rows and tokens, fillers and padding do not count."""

    rows: int
    """Those of a pack count each."""
    tokens: int
    computed: int = 0
    """Tokens with all padding and fillers."""

    def __add__(self, other: Fed) -> Fed:
        return Fed(
            rows=self.rows + other.rows, tokens=self.tokens + other.tokens, computed=self.computed + other.computed
        )

    def __sub__(self, other: Fed) -> Fed:
        return Fed(
            rows=self.rows - other.rows, tokens=self.tokens - other.tokens, computed=self.computed - other.computed
        )

    @property
    def padding(self) -> float | None:
        """Share of the computed tokens that are padding; None where nothing was computed."""
        return 1 - self.tokens / self.computed if self.computed else None


@dataclass(frozen=True)
class BatchRow:
    """A row as its batch knows it."""

    number: int | None
    """In its split, counted from 0: the place in the row table."""
    name: str
    """As messages say it: `train.jsonl row 17`."""


class NamesRows:
    """A collator that adds to the batch of another which rows it is of, its number of supervised tokens, and `FED`.

    Args:
        collator: makes the batch.
    """

    def __init__(self, collator: Callable[[Any], Mapping[str, Any]]) -> None:
        self._collator = collator

    def __call__(self, rows: Sequence[Conversation | Filler]) -> dict[str, Any]:
        """Return the batch with `ROWS`, in order, fillers too, `SUPERVISED` and `FED`."""
        read = [row.row if isinstance(row, Filler) else row for row in rows]
        numbered = tuple(BatchRow(row.number, str(row.source)) for row in read)
        batch = self._collator(rows)
        fed = Fed(
            rows=sum(len(getattr(row, "rows", (row,))) for row in rows if not isinstance(row, Filler)),
            tokens=int(batch["attention_mask"].sum()),
            computed=batch["attention_mask"].numel(),
        )
        return {**batch, ROWS: numbered, SUPERVISED: int((batch["supervised_positions"] >= 0).sum()), FED: fed}


@contextmanager
def naming_rows(trainer: Any) -> Iterator[None]:
    """Within this context, loaders that the trainer makes give batches with `ROWS`, `SUPERVISED` and `FED`."""
    collator = trainer.data_collator
    trainer.data_collator = NamesRows(collator)
    try:
        yield
    finally:
        trainer.data_collator = collator
