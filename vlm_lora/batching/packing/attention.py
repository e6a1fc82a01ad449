"""Who sees whom in a pack: ready-made masks, so that nothing is left to a guess from positions.

`rows` `(B, T)` int64 names the row of each token, 0 for what only fills the sequence: a segment of its own, so that
no line of a mask is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch


def visible(
    rows: torch.Tensor,
    *,
    window: int | None = None,
    spans: torch.Tensor | None = None,
    window_cuts_spans: bool = True,
) -> torch.Tensor:
    """Return which tokens each token sees, within its own row alone.

    Args:
        rows: `(B, T)` int64.
        window: how many tokens a token sees at most, itself included; None for all before it.
        spans: `(B, T)` int64, equal where tokens of a row see each other in both directions; -1 outside.
        window_cuts_spans: whether that ends at the window.

    Returns:
        `(B, 1, T, T)` bool: `[b, 0, q, k]` is True where token q sees token k.

    >>> visible(torch.tensor([[1, 1, 2, 2]])).int()[0, 0].tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    """
    place = torch.arange(rows.shape[1], device=rows.device)
    seen = (place[:, None] >= place[None, :]).expand(len(rows), -1, -1)
    near = None if window is None else place[None, :] > place[:, None] - window
    if near is not None and not window_cuts_spans:
        seen, near = seen & near, None
    if spans is not None:
        seen = seen | ((spans[:, :, None] == spans[:, None, :]) & (spans[:, :, None] >= 0))
    if near is not None:
        seen = seen & near
    return (seen & (rows[:, :, None] == rows[:, None, :]))[:, None]


def image_spans(marked: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return `(B, T)` int64: a number for each stretch of marked tokens of one row, -1 outside.

    Args:
        marked: `(B, T)` bool, the tokens of images.
        rows: `(B, T)` int64; a stretch ends with its row.

    >>> image_spans(torch.tensor([[True, True, True, False]]), torch.tensor([[1, 1, 2, 2]])).tolist()
    [[0, 0, 1, -1]]
    """
    goes_on = torch.zeros_like(marked)
    goes_on[:, 1:] = marked[:, :-1] & (rows[:, 1:] == rows[:, :-1])
    return torch.where(marked, (marked & ~goes_on).long().cumsum(dim=1) - 1, -1)


def segments(lengths: Sequence[int], device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return rows as flash attention's kernels for rows of various length take them, by transformers' names.

    Args:
        lengths: tokens of each row, and of each filled end: a segment like a row.
        device: where the bounds are to be.

    >>> segments([3, 2])["cu_seq_lens_q"].tolist()
    [0, 3, 5]
    """
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    longest = max(lengths)
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a mask to add to scores: 0 where True, the lowest number of `dtype` elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
