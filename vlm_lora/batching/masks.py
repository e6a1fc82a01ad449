"""Which tokens the model must produce, checked against the characters they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vlm_lora.batching.encoded import IGNORE_INDEX, EncodedRow
from vlm_lora.errors import RenderingError


@dataclass(frozen=True, kw_only=True)
class Span:
    """Characters `[start, end)` of the expanded rendering that the model must produce."""

    start: int
    end: int
    ended: bool
    """Whether the last character belongs to an eos token."""


def supervise(offsets: torch.Tensor, spans: Sequence[Span]) -> torch.Tensor:
    """Return `(T,)` bool: the tokens that stand for at least one character of a span.

    A token that covers header space and the start of an answer is supervised. A token without width (the
    `▁` that SentencePiece puts before a text) counts where it stands at a span's start.

    Args:
        offsets: `(T, 2)` int64, the characters `[start, end)` of each token.
        spans: in order, not overlapping.
    """
    start, end = offsets[:, 0], offsets[:, 1]
    mask = torch.zeros(len(offsets), dtype=torch.bool)
    for span in spans:
        mask |= (start < span.end) & ((end > span.start) | ((start == end) & (start == span.start)))
    return mask


def check_mask(
    *,
    input_ids: torch.Tensor,
    mask: torch.Tensor,
    offsets: torch.Tensor,
    spans: Sequence[Span],
    text: str,
    eos_token_ids: frozenset[int],
    media_token_ids: frozenset[int],
) -> None:
    """Check the label promise on one row, from the mask alone.

    Every run of supervised tokens must cover exactly one span (white space at its edges may share a token
    with it), must end in an eos token where the span does, and holds no media token.

    Args:
        input_ids: `(T,)` int64.
        mask: `(T,)` bool.
        offsets: `(T, 2)` int64.
        spans: what the model must produce.
        text: the expanded rendering.
        eos_token_ids: tokens that end an answer.
        media_token_ids: placeholders.

    Raises:
        RenderingError: what is wrong, without the row's source.
    """
    if not bool(mask.any()):
        raise RenderingError("no token is supervised: the row has no assistant turn that is trained on.")
    runs = _runs(mask)
    if len(runs) != len(spans):
        raise RenderingError(f"{len(runs)} supervised stretches for {len(spans)} assistant turns that are trained on.")
    ids = input_ids.tolist()
    for (first, last), span in zip(runs, spans, strict=True):
        begin, end = int(offsets[first, 0]), int(offsets[last, 1])
        seen = text[begin:end]
        exact = (
            begin <= span.start < max(int(offsets[first, 1]), span.start + 1)
            and int(offsets[last, 0]) < span.end <= end
            and not text[begin : span.start].strip()
            and not text[span.end : end].strip()
        )
        if not exact:
            raise RenderingError(
                f"the supervised tokens stand for {seen!r}, the model must produce {text[span.start : span.end]!r}."
            )
        if span.ended and ids[last] not in eos_token_ids:
            raise RenderingError(f"the answer {seen!r} does not end with an eos token.")
        if not media_token_ids.isdisjoint(ids[first : last + 1]):
            raise RenderingError(f"a media token is supervised in {seen!r}.")


def _runs(mask: torch.Tensor) -> list[tuple[int, int]]:
    """Return `(first, last)` of each longest stretch of True."""
    edges = torch.diff(mask.to(torch.int8), prepend=torch.zeros(1, dtype=torch.int8))
    firsts = edges.eq(1).nonzero().flatten().tolist()
    lasts = [*(edges.eq(-1).nonzero().flatten() - 1).tolist(), len(mask) - 1]
    return list(zip(firsts, lasts, strict=False))


def supervised_text(row: EncodedRow, tokenizer: Any) -> list[str]:
    """Return what each supervised stretch of a row decodes to, special tokens included.

    >>> supervised_text(row, tokenizer)  # doctest: +SKIP
    ['a red bus<|im_end|>']
    """
    ids = row.input_ids.tolist()
    runs = _runs(row.labels.ne(IGNORE_INDEX))
    return [decode_between(ids, first, last + 1, tokenizer) for first, last in runs]


def decode_between(ids: Sequence[int], start: int, end: int, tokenizer: Any) -> str:
    """Decode `ids[start:end]` as a stretch of the whole: SentencePiece would drop its leading space alone."""

    def decode(first: int, last: int) -> str:
        known = [token_id for token_id in ids[first:last] if token_id >= 0]  # Phi-3-Vision's placeholders are not
        decoded: str = tokenizer.decode(known, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return decoded

    anchor = max(start - 1, 0)
    return decode(anchor, end)[len(decode(anchor, start)) :]
