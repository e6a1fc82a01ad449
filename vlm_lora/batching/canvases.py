"""A few image sizes for models whose tokens depend on the size, on hardware that compiles each new shape.

Images are resized to the nearest of these canvases before the processor sees them. Which canvases is
decided from the sizes in the data: those very sizes where they are few, else the centres of clusters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

Size = tuple[int, int]
"""Width and height in pixels."""

_ROUNDS = 25


def choose_canvases(sizes: Sequence[Size], count: int) -> tuple[Size, ...]:
    """Return at most `count` canvases for images of these sizes, by k-means on log width and log height."""
    different, weights = np.unique(np.asarray(sizes, dtype=np.int64), axis=0, return_counts=True)
    if len(different) <= count:
        return tuple((int(width), int(height)) for width, height in different)
    points = np.log(different)
    centres = _spread(points, weights, count)
    for _ in range(_ROUNDS):
        nearest = _distances(points, centres).argmin(axis=1)
        moved = np.array(
            [
                np.average(points[nearest == place], axis=0, weights=weights[nearest == place])
                if (nearest == place).any()
                else centre
                for place, centre in enumerate(centres)
            ]
        )
        if np.allclose(moved, centres):
            break
        centres = moved
    return tuple(sorted({(int(width), int(height)) for width, height in np.exp(centres).round()}))


def nearest(sizes: Sequence[Size], canvases: Sequence[Size]) -> Size:
    """Return the one canvas that changes images of these sizes least: a row's images share it."""
    points = np.log(np.array(sizes, dtype=np.float64))
    distances = _distances(points, np.log(np.array(canvases, dtype=np.float64)))
    return canvases[int(distances.sum(axis=0).argmin())]


def resized(picture: Image.Image, size: Size) -> Image.Image:
    """Return an image at a size in pixels (bicubic)."""
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC)


def stretch(sizes: Sequence[Size], canvases: Sequence[Size]) -> float:
    """Return the largest change of an image's aspect ratio, as a share: 0.1 is one side 10 % longer."""
    points, centres = np.log(np.asarray(sizes, dtype=np.float64)), np.log(np.asarray(canvases, dtype=np.float64))
    chosen = centres[_distances(points, centres).argmin(axis=1)]
    change = np.abs((chosen - points) @ np.array([1.0, -1.0]))
    return float(np.expm1(change.max()))


def _distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return ((points[:, None, :] - centres[None, :, :]) ** 2).sum(axis=2)


def _spread(points: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """Return starting centres: the most frequent size, then always the one farthest from those chosen."""
    chosen = [int(weights.argmax())]
    while len(chosen) < count:
        chosen.append(int(_distances(points, points[chosen]).min(axis=1).argmax()))
    return points[chosen]
