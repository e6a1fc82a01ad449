"""What each image of an encoded row comes to: tokens of the text model, patches of the vision tower."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch

from vlm_lora.batching.canvases import Size
from vlm_lora.batching.chat.layouts import Rendering
from vlm_lora.batching.tokenization import Tokenized


def tokens_by_image(
    rendering: Rendering,
    tokenized: Tokenized,
    sizes: Sequence[Size],
    *,
    placeholders: Sequence[str],
    media_token_ids: Collection[int],
) -> tuple[int, ...]:
    """Return how many media tokens stand in the place of each image's placeholder, in reading order.

    The tokens of images of different sizes between which the template writes nothing cannot be told apart, and are 0.

    Args:
        rendering: what the processor was given.
        tokenized: what it made of it.
        sizes: width and height of each image as the processor was given it.
        placeholders: strings that may stand for one image in the rendering.
        media_token_ids: tokens that images become.
    """
    stretches: list[tuple[int, int]] = []
    start = 0
    for number, literal in enumerate(rendering.layout.literals):
        texts = rendering.layout.order
        end, after = tokenized.places[texts[number]] if number < len(texts) else (len(tokenized.text),) * 2
        placeholder = max(placeholders, key=literal.count, default="")
        if placeholder and placeholder in literal:
            pieces = literal.split(placeholder)
            shown = sizes[len(stretches) : len(stretches) + len(pieces) - 1]
            stretches += _expansions(pieces, tokenized.text, start, end, alike=len(set(shown)) == 1)
        start = after
    if len(stretches) != len(sizes):
        return (0,) * len(sizes)
    wanted = torch.tensor(sorted(media_token_ids), dtype=torch.int64)
    places = tokenized.offsets[torch.isin(tokenized.input_ids, wanted), 0]
    bounds = torch.searchsorted(places, torch.tensor(stretches, dtype=places.dtype).reshape(-1, 2))
    return tuple((bounds[:, 1] - bounds[:, 0]).tolist())


def _expansions(pieces: Sequence[str], text: str, start: int, end: int, *, alike: bool) -> list[tuple[int, int]]:
    """Find where the placeholders between `pieces` of a template went in `text[start:end]`; nowhere if unsure.

    `alike` says that all images have one size, and so became the same.
    """
    first, *between, last = pieces
    images = len(pieces) - 1
    start, end = start + len(first), end - len(last)
    if alike and not any(between) and (end - start) % images == 0:
        length = (end - start) // images
        return [(at, at + length) for at in range(start, end, length)] if length else [(0, 0)] * images
    if "" in between or len(set(between)) > 1 or any(text.count(each, start, end) != len(between) for each in between):
        return [(0, 0)] * images
    found = []
    for piece in between:
        stop = text.index(piece, start)
        found.append((start, stop))
        start = stop + len(piece)
    return [*found, (start, end)]


def patches_by_image(media: Mapping[str, torch.Tensor], images: int) -> tuple[int, ...]:
    """Return the patches of each image, or its tiles where the model has no grid; 0 where they cannot be told.

    Args:
        media: the media tensors of one row: `image_grid_thw` `(images, 3)`, or `pixel_values` with a leading
            dimension of images `(images, [tiles,] 3, h, w)` or of the row `(1, tiles, 3, h, w)`.
        images: how many the row has.
    """
    grid, pixels = media.get("image_grid_thw"), media.get("pixel_values")
    if grid is not None and len(grid) == images:
        return tuple(grid.prod(dim=1).tolist())
    if pixels is None or pixels.dim() not in (4, 5):
        return (0,) * images
    leading, tiles = len(pixels), 1 if pixels.dim() == 4 else pixels.shape[1]
    return (tiles if leading == images else 0,) * images
