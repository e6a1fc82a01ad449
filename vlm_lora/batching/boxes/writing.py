"""A conversation's boxes as text, once it is known at which sizes the model sees its images; and back to pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlm_lora.batching.boxes.conventions import BoxConvention, SeenImage, counted, in_pixels
from vlm_lora.batching.boxes.spellings import Mark, spelling_of
from vlm_lora.data.conversation import ImageRef, Named, Piece, Place, PlacedText, PlaceList, Text, Turn
from vlm_lora.errors import RenderingError


@dataclass(frozen=True, kw_only=True)
class Region:
    """A box or point that a text names, in pixels."""

    numbers: tuple[float, ...]
    """Left, top, right, bottom; of a point x, y. Of the image as it is stored, upright; not clipped to it."""
    label: str | None
    image: int
    """Number of its image in the row, from 0."""

    def record(self) -> dict[str, Any]:
        """Return plain values for JSON, rounded to a hundredth of a pixel."""
        kind = "bbox" if len(self.numbers) == 4 else "point"
        return {kind: [round(number, 2) for number in self.numbers], "label": self.label, "image_id": self.image}


def is_placed(turns: Sequence[Turn]) -> bool:
    """Tell whether any text of these turns has places in it."""
    return any(isinstance(part, PlacedText) for turn in turns for part in turn.parts)


def write_places(
    turns: Sequence[Turn], images: Sequence[ImageRef], seen: Sequence[SeenImage], convention: BoxConvention
) -> tuple[tuple[Turn, ...], tuple[Region, ...]]:
    """Return the turns with all places written as text, and the places as they are read out of that text again.

    Args:
        turns: of one conversation.
        images: its images, in reading order.
        seen: their sizes, image by image.
        convention: how the model counts and writes.

    Raises:
        RenderingError: a place of an image that is not among them, or boxes of several images in a spelling that
            cannot say so.
    """
    writer = _Writer(images, seen, convention)
    written = tuple(replace(turn, parts=tuple(map(writer.part, turn.parts))) for turn in turns)
    return written, tuple(writer.regions)


def read_places(
    text: str, seen: Sequence[SeenImage], convention: BoxConvention, *, bare: bool = True
) -> tuple[Region, ...]:
    """Return the boxes and points of an answer, in pixels of the images as they are stored.

    Where there are several images, a box that does not say whose it is is left out: nothing tells what its numbers
    mean.

    Args:
        text: what a model wrote.
        seen: the sizes of the images that it saw.
        convention: how it counts and writes.
        bare: whether lists of numbers without a key or mark are boxes.
    """
    found = []
    for box in spelling_of(convention).read(text, bare=bare):
        number = 0 if len(seen) == 1 else box.image
        if number is not None and 0 <= number < len(seen):
            numbers = in_pixels(box.numbers, seen[number], convention)
            found.append(Region(numbers=numbers, label=box.label, image=number))
    return tuple(found)


class _Writer:
    def __init__(self, images: Sequence[ImageRef], seen: Sequence[SeenImage], convention: BoxConvention) -> None:
        self.regions: list[Region] = []
        # By what is shown: a part may show it at a size of its own.
        self._numbers = {id(image.source): number for number, image in enumerate(images)}
        self._seen = seen
        self._convention = convention
        self._spelling = spelling_of(convention)

    def part(self, part: Text | PlacedText | ImageRef) -> Text | ImageRef:
        if not isinstance(part, PlacedText):
            return part
        text, controls = "", []
        for stretch in (each for piece in part.pieces for each in self._written(piece)):
            if isinstance(stretch, Mark):
                controls.append((len(text), len(text) + len(stretch)))
            text += stretch
        return Text(text=text, controls=tuple(controls))

    def _written(self, piece: Piece) -> Sequence[str]:
        if isinstance(piece, str):
            return [piece]
        if isinstance(piece, Place):
            return [*self._spelling.place(self._counted(piece, None))]
        if isinstance(piece, Named):
            return [*self._spelling.named(piece.text)]
        if isinstance(piece, PlaceList):
            return [*self._spelling.listed([(item, self._of_item(item)) for item in piece.items])]
        if not piece.placed:
            return [piece.in_json("in pixels")]
        return [self._spelling.form(self._convention.unit, piece)]

    def _of_item(self, item: tuple[tuple[str, str | int | Place], ...] | Place) -> tuple[int, ...]:
        if isinstance(item, Place):
            return self._counted(item, None)
        label = next((value for _, value in item if isinstance(value, str)), None)
        return self._counted(next(value for _, value in item if isinstance(value, Place)), label)

    def _counted(self, place: Place, label: str | None) -> tuple[int, ...]:
        """Return a place's numbers, and note what they read back as."""
        number = 0 if place.image is None else self._numbers.get(id(place.image.source))
        if number is None or number >= len(self._seen):
            raise RenderingError(
                "a box lies in an image that the row no longer shows (--on_overflow trim_turns left out the turn with "
                "it). Shorten the row, or choose another --on_overflow."
            )
        seen = self._seen[number]
        if place.size != seen.size:
            raise RenderingError(
                f"a box is for an image of {place.size[0]}x{place.size[1]} pixels, and it decodes to {seen.size[0]}x"
                f"{seen.size[1]}: its header says another size. Save the image anew."
            )
        numbers = counted(place.numbers, seen, self._convention)
        written = "".join(self._spelling.place(numbers))
        (read,) = self._spelling.read(written, bare=True)
        self.regions.append(Region(numbers=in_pixels(read.numbers, seen, self._convention), label=label, image=number))
        return numbers
