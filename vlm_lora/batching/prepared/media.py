"""A row's media tensors with pixel values as levels, which become numbers where their batch lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from vlm_lora.batching.prepared.levels import PIXELS, Levels, new_tensor


class PreparedMedia(Mapping[str, torch.Tensor]):
    """Media tensors by name; asked for, pixel values are made of their levels, each time anew.

    Args:
        tensors: the media tensors; `pixel_values` as levels (uint8).
        levels: what these stand for.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], levels: Levels) -> None:
        self.tensors = dict(tensors)
        self.levels = levels

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self.tensors[name]
        return self.levels.values(tensor) if name == PIXELS else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def outlines(media: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Return media tensors whose shapes alone are asked for: pixel values that lie as levels are not made."""
    if not isinstance(media, PreparedMedia):
        return media
    return {**media.tensors, PIXELS: torch.zeros(()).expand(media.tensors[PIXELS].shape)}


def join_levels(rows: Sequence[Mapping[str, torch.Tensor]], name: str) -> torch.Tensor | None:
    """Join one media tensor of several rows along dim 0 where all of them have it as levels, of one size.

    Returns:
        `(sum of n, ...)` float32; None where they have not: they are joined as any tensors are.
    """
    prepared = [media for media in rows if isinstance(media, PreparedMedia)]
    if name != PIXELS or len(prepared) != len(rows):
        return None
    parts = [media.tensors[name] for media in prepared]
    if len({part.shape[1:] for part in parts}) > 1:
        return None
    joined = new_tensor((sum(len(part) for part in parts), *parts[0].shape[1:]))
    start = 0
    for media, part in zip(prepared, parts, strict=True):
        media.levels.write(part, joined[start : start + len(part)])
        start += len(part)
    return joined
