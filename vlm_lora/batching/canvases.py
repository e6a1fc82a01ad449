"""A few image sizes for models whose tokens depend on the size, on hardware that compiles each new shape.

Images are resized to the nearest of these canvases before the processor sees them. Which canvases is
decided from the sizes in the data: those very sizes where they are few, else the centres of clusters.

A row may also ask for a size of its own for an image, as Qwen-VL's parts do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from vlm_lora.data.conversation import OwnSize
from vlm_lora.errors import RenderingError

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


BY_PIXELS = "Qwen2VLImageProcessor"
"""Of Qwen2-VL to Qwen3.5 (the start of the class's name): an image is scaled until its pixels lie within a budget. It
is kept as `size`: `shortest_edge` and `longest_edge` are numbers of pixels there."""

_LEAST_PATCHES, _MOST_PATCHES = 4, 16384
"""What qwen-vl-utils takes where a part does not say the least or the most."""


def own_size(own: OwnSize, size: Size, image_processor: Any) -> Size:
    """Return the width and height to which an image with a size of its own is resized before the processor sees it.

    Both sides become multiples of a merged patch, within the image's own number of pixels or close to its own sides,
    as qwen-vl-utils (smart_resize) makes them. The processor's budget for all images holds for what comes out.

    Args:
        own: what the row asks for.
        size: width and height of the image.
        image_processor: the model's; its class and patches decide.

    Raises:
        RenderingError: the model's images have no such sizes.
    """
    if not type(image_processor).__name__.startswith(BY_PIXELS):
        raise RenderingError(
            "an image has a size of its own (min_pixels, max_pixels, resized_height, resized_width), which Qwen-VL's "
            "families alone can show. Leave it out, or resize the image."
        )
    patch = image_processor.patch_size * image_processor.merge_size
    least = own.min_pixels or _LEAST_PATCHES * patch**2
    most = own.max_pixels or _MOST_PATCHES * patch**2
    if own.resized_width is not None and own.resized_height is not None:
        size = own.resized_width, own.resized_height
    area = size[0] * size[1]
    width, height = (max(patch, round(side / patch) * patch) for side in size)
    if width * height > most:
        share = math.sqrt(area / most)
        width, height = (max(patch, math.floor(side / share / patch) * patch) for side in size)
    elif width * height < least:
        share = math.sqrt(least / area)
        width, height = (math.ceil(side * share / patch) * patch for side in size)
    return width, height


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
