"""Pixel values as the levels 0 to 255 that they were before rescaling and normalising: a quarter of the bytes.

An image processor ends by bringing each level of each colour to one floating-point number. The table of these numbers
is found by trial, with the processor itself, and tried again on an image of noise, so what a level gives is bit for
bit what the processor would have given, whatever arithmetic it does it by. Where the trial fails there is no table.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

logger = logging.getLogger(__name__)

PIXELS = "pixel_values"
"""The one output that is kept as levels."""

_COLOURS, _LEVELS = 3, 256
_BYTES = 200_000
"""Levels calculated at a time."""
_BLOCK = 1 << 15
"""Numbers, or pairs of them, looked up at a time: a block, its places and the table stay in a core's cache."""

RAW: Mapping[str, bool] = {"do_rescale": False, "do_normalize": False}
"""Keywords that make an image processor return levels."""

Prepare = Callable[..., Mapping[str, Any]]


class Levels:
    """What each level of each colour becomes.

    Args:
        table: `(3, 256)` float32.
        layout: where a pixel's colour shows: planes are `(..., 3, H, W)`; columns are `(patches, 3 * k)`, the k numbers
            of a colour together.
    """

    def __init__(self, table: np.ndarray, layout: Literal["planes", "columns"]) -> None:
        self.table = table
        self.layout = layout
        self._wide: dict[int, np.ndarray] = {}
        self._lines = [_line_of(colour) for colour in table]

    def __reduce__(self) -> tuple[object, ...]:
        return Levels, (self.table, self.layout)

    def write(self, levels: torch.Tensor, out: torch.Tensor) -> None:
        """Write what levels stand for.

        Args:
            levels: uint8, contiguous.
            out: float32 of the same shape, contiguous.
        """
        run = self._run(levels.shape)
        lines = [line for line in self._lines if line is not None]
        if len(lines) == _COLOURS:
            self._calculate(levels, out, lines)
            return
        width = 2 if run % 2 == 0 else 1
        table = self._by(width)
        source = levels.reshape(-1).numpy().view(np.uint16 if width == 2 else np.uint8).reshape(-1, run // width)
        target = out.reshape(-1).numpy().view(table.dtype).reshape(-1, run // width)
        places = np.empty(_BLOCK, dtype=np.intp)
        size = len(table) // _COLOURS
        for number, (some, given) in enumerate(zip(source, target, strict=True)):
            first = number % _COLOURS * size
            for start in range(0, len(some), _BLOCK):
                block = some[start : start + _BLOCK]
                where = np.add(block, first, out=places[: len(block)], casting="unsafe", dtype=np.intp)
                np.take(table, where, out=given[start : start + _BLOCK], mode="clip")

    def _calculate(self, levels: torch.Tensor, out: torch.Tensor, lines: list[tuple[float, float]]) -> None:
        """As `write`, where each colour's numbers lie on a line: in place, while a block lies in a core's cache."""
        if self.layout == "columns":
            run = self._run(levels.shape)
            means, spreads = (torch.tensor(values).repeat_interleave(run) for values in zip(*lines, strict=True))
            rows = max(1, _BYTES // levels.shape[-1])
            for given, some in zip(out.split(rows), levels.split(rows), strict=True):
                given.copy_(some).sub_(means).div_(spreads)
            return
        planes = levels.reshape(-1, self._run(levels.shape)), out.reshape(-1, self._run(levels.shape))
        for number, (some, given) in enumerate(zip(*planes, strict=True)):
            mean, spread = lines[number % _COLOURS]
            for source, target in zip(some.split(_BYTES), given.split(_BYTES), strict=True):
                target.copy_(source).sub_(mean).div_(spread)

    def values(self, levels: torch.Tensor) -> torch.Tensor:
        """Return what levels stand for, in new memory."""
        out = new_tensor(tuple(levels.shape))
        self.write(levels, out)
        return out

    def _run(self, shape: torch.Size) -> int:
        """Return how many numbers of one colour lie together."""
        return shape[-1] * shape[-2] if self.layout == "planes" else shape[-1] // _COLOURS

    def _by(self, width: int) -> np.ndarray:
        """Return one table for all colours, one behind the other: by level, or by two levels that lie together."""
        if width == 1:
            return self.table.reshape(-1)
        if width not in self._wide:
            # On the machines that are served the first of two bytes is the lower half of their number.
            pairs = np.empty((_COLOURS, _LEVELS, _LEVELS, 2), dtype=np.float32)
            pairs[..., 0] = self.table[:, None, :]
            pairs[..., 1] = self.table[:, :, None]
            self._wide[width] = pairs.reshape(-1).view(np.float64)
        return self._wide[width]


def _line_of(numbers: np.ndarray) -> tuple[float, float] | None:
    """Return the mean and the spread by which (level - mean) / spread, in float32, gives one colour's numbers.

    That is how torchvision's image processors normalise; None where no such two numbers are near.
    """
    spread = np.float32(255 / (np.float64(numbers[255]) - np.float64(numbers[0])))
    mean = np.float32(-np.float64(numbers[0]) * np.float64(spread))
    levels = torch.arange(_LEVELS, dtype=torch.float32)
    wanted = torch.from_numpy(np.ascontiguousarray(numbers))
    for middle in _around(mean):
        for width in _around(spread):
            if torch.equal(levels.clone().sub_(middle).div_(width), wanted):
                return middle, width
    return None


def _around(number: np.float32) -> list[float]:
    """Return a number and those that float32 has next to it, the nearest first."""
    step = np.spacing(number)
    return [float(np.float32(number + place * step)) for place in sorted(range(-8, 9), key=abs)]


def new_tensor(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return memory for a large tensor, not filled.

    numpy asks the system for huge pages (numpy 1.22, `NUMPY_MADVISE_HUGEPAGE`): filling new memory then takes a third
    of the time that torch's own takes, page by page.
    """
    size = int(np.prod(shape)) * dtype.itemsize
    return torch.from_numpy(np.empty(size, dtype=np.uint8)).view(dtype).reshape(shape)


def find_levels(prepare: Prepare, side: int) -> Levels | None:
    """Return what an image processor's levels become, or None where no table says it.

    Args:
        prepare: calls it with a list of images and keywords.
        side: a side in pixels, 16 or more, that it takes without resizing.
    """
    gray = np.resize(np.arange(_LEVELS, dtype=np.uint8), (side, side))
    noise = np.random.default_rng(0).integers(0, _LEVELS, (side, side, _COLOURS), dtype=np.uint8)
    try:
        trials = [
            [_pixels(prepare, picture, **raw) for raw in (RAW, {})]
            for picture in (np.stack([gray] * _COLOURS, axis=-1), noise)
        ]
    except Exception as error:  # what a processor says to keywords that it has not
        logger.debug("pixel values are kept as they are: %s", error)
        return None
    (levels, values), (other_levels, other_values) = trials
    if levels.shape != values.shape or values.dtype != torch.float32 or not _are_levels(levels):
        return None
    layouts: tuple[Literal["planes", "columns"], ...] = ("planes", "columns")
    for layout in layouts:
        table = _table(levels, values, layout)
        if table is None:
            continue
        found = Levels(table, layout)
        if _are_levels(other_levels) and torch.equal(found.values(as_levels(other_levels)), other_values):
            return found
    return None


def as_levels(pixels: torch.Tensor) -> torch.Tensor:
    """Return pixel values that were neither rescaled nor normalised as uint8, contiguous."""
    return pixels.to(torch.uint8).contiguous()


def _are_levels(pixels: torch.Tensor) -> bool:
    return bool(pixels.dtype == torch.uint8 or (pixels == pixels.to(torch.uint8)).all())


def _pixels(prepare: Prepare, picture: np.ndarray, **keywords: Any) -> torch.Tensor:
    pixels = prepare([Image.fromarray(picture)], do_resize=False, **keywords)[PIXELS]
    return pixels if isinstance(pixels, torch.Tensor) else torch.as_tensor(np.stack(pixels))


def _table(levels: torch.Tensor, values: torch.Tensor, layout: Literal["planes", "columns"]) -> np.ndarray | None:
    """Return what each level of each colour became; None where a level is missing or nothing is laid out so."""
    if layout == "planes":
        if levels.dim() < 3 or levels.shape[-3] != _COLOURS:
            return None
        run = levels.shape[-1] * levels.shape[-2]
    else:
        if levels.dim() != 2 or levels.shape[1] % _COLOURS:
            return None
        run = levels.shape[1] // _COLOURS
    before, after = (tensor.reshape(-1, _COLOURS, run).numpy() for tensor in (as_levels(levels), values))
    table = np.full((_COLOURS, _LEVELS), np.nan, dtype=np.float32)
    for colour in range(_COLOURS):
        table[colour, before[:, colour]] = after[:, colour]
    return None if np.isnan(table).any() else table
