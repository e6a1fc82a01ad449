"""Positions in a pack: those that the model gives each row alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence


def restarted(rows: torch.Tensor, *, first: int = 0) -> torch.Tensor:
    """Return `(B, T)` int64 positions that begin anew with each row of `rows` `(B, T)`.

    >>> restarted(torch.tensor([[1, 1, 2, 2, 2, 0]])).tolist()
    [[0, 1, 0, 1, 2, 0]]
    """
    place = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
    begins = torch.ones_like(rows, dtype=torch.bool)
    begins[:, 1:] = rows[:, 1:] != rows[:, :-1]
    # By number of the row, of which no sequence has more than tokens: one shape, whatever the rows are.
    starts = rows.new_zeros(len(rows), rows.shape[1] + 1).scatter_add(1, rows, place * begins)
    return place - starts.gather(1, rows) + first


def by_rope_index(
    rows: torch.Tensor, inputs: Mapping[str, torch.Tensor], rope_index: Callable[..., Any]
) -> torch.Tensor:
    """Return `(3, B, T)` int64 positions (time, height, width), each row's as the model counts them for it alone.

    Args:
        rows: `(B, T)` int64.
        inputs: the batch: `input_ids` `(B, T)`, `image_grid_thw` `(images, 3)` in the order of the rows, and what else
            the model's function takes of `mm_token_type_ids` `(B, T)`.
        rope_index: the model's own `get_rope_index`.
    """
    if "image_grid_thw" not in inputs:
        return restarted(rows).expand(3, -1, -1)
    lengths = row_lengths(rows)
    taken = signature(rope_index).parameters
    unpacked = {
        name: pad_sequence(inputs[name].flatten().split(lengths), batch_first=True)
        for name in ("input_ids", "mm_token_type_ids")
        if name in inputs and name in taken
    }
    mask = pad_sequence(torch.ones_like(rows).flatten().split(lengths), batch_first=True)
    found, _ = rope_index(**unpacked, image_grid_thw=inputs["image_grid_thw"], attention_mask=mask)
    joined = torch.cat([found[:, number, :length] for number, length in enumerate(lengths)], dim=1)
    return joined.view(3, *rows.shape).to(rows.device)


def row_lengths(rows: torch.Tensor) -> list[int]:
    """Return the tokens of each row and each filled end of `rows` `(B, T)`, sequence by sequence."""
    return [
        int(count) for sequence in rows.cpu() for count in torch.unique_consecutive(sequence, return_counts=True)[1]
    ]
