"""The boxes of a row on its way to tensors: written once the sizes are known, and held against those that were fed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlm_lora.batching.boxes.conventions import BoxConvention, SeenImage
from vlm_lora.batching.boxes.fed_sizes import fed_size, feeds_whole_images
from vlm_lora.batching.boxes.writing import Region, is_placed, write_places
from vlm_lora.batching.canvases import Size
from vlm_lora.batching.encoded import EncodedRow
from vlm_lora.data.conversation import Conversation, ImageRef
from vlm_lora.errors import ModelError, RenderingError


@dataclass(frozen=True, kw_only=True)
class LoadedImage:
    """A decoded image, at a size of its own where its part asks for one."""

    picture: Any
    stored: Size
    """Width and height as it is stored, upright, which boxes are counted in."""


@dataclass(frozen=True, kw_only=True)
class WrittenBoxes:
    """A conversation with its boxes as text, and what is known of them."""

    written: Conversation
    seen: tuple[SeenImage, ...]
    placed: bool = False
    """Whether there are any."""
    regions: tuple[Region, ...] = ()
    answer: str | None = None
    """The answer as the model is to write it, where it has boxes."""


class BoxEncoder:
    """Writes the boxes of conversations as one model counts them.

    Args:
        processor: the model's processor.
        convention: how the model counts and writes boxes.

    Raises:
        ModelError: pixels after resizing, of a processor that feeds no whole image.
    """

    def __init__(self, processor: Any, convention: BoxConvention) -> None:
        self._processor = processor
        self._convention = convention
        if convention.unit == "resized_pixels" and not feeds_whole_images(processor.image_processor):
            raise ModelError(
                f"--box_coordinates resized_pixels: {type(processor.image_processor).__name__} feeds no whole image at "
                "one size that follows from the image's own (it cuts, pads or tiles). Allowed are auto, "
                "pixels, per_mille."
            )

    def write(
        self,
        conversation: Conversation,
        images: Sequence[ImageRef],
        loaded: Sequence[LoadedImage],
        pictures: Sequence[Any],
    ) -> WrittenBoxes:
        """Return the conversation with its boxes as text.

        Args:
            conversation: the row.
            images: those that are shown, in reading order.
            loaded: the same, decoded.
            pictures: the same as they are given to the processor.

        Raises:
            RenderingError: the processor refuses a size, or the spelling cannot say what the boxes are of.
        """
        try:
            seen = self._seen(conversation, loaded, pictures)
            if not is_placed(conversation.turns):
                return WrittenBoxes(written=conversation, seen=seen)
            turns, regions = write_places(conversation.turns, images, seen, self._convention)
        except RenderingError as error:
            raise type(error)(f"{conversation.source}: {error}") from error
        written = replace(conversation, turns=turns)
        asked = any(turn.is_answer for turn in conversation.turns)
        answer = written.answer.text if asked and is_placed([conversation.answer]) else None
        return WrittenBoxes(written=written, seen=seen, placed=True, regions=regions, answer=answer)

    def _seen(
        self, conversation: Conversation, loaded: Sequence[LoadedImage], pictures: Sequence[Any]
    ) -> tuple[SeenImage, ...]:
        """Return the sizes of images that are given to the processor as `pictures`: as far as boxes need them."""
        fed: list[Size | None] = [None] * len(loaded)
        if self._convention.unit == "resized_pixels" and is_placed(conversation.turns):
            try:
                fed = [fed_size(self._processor.image_processor, picture.size) for picture in pictures]
            except ValueError as error:
                raise RenderingError(f"{type(self._processor).__name__} refuses this row: {error}") from error
        return tuple(
            SeenImage(size=image.stored, given=picture.size, fed=size)
            for image, picture, size in zip(loaded, pictures, fed, strict=True)
        )

    def checked(self, row: EncodedRow, boxes: WrittenBoxes) -> EncodedRow:
        """Return a row with what is known of its boxes, after a look at the sizes that its images were fed at.

        Raises:
            RenderingError: they are not those that boxes were written for.
        """
        row = replace(row, seen=boxes.seen, regions=boxes.regions, answer=boxes.answer)
        if self._convention.unit != "resized_pixels" or not boxes.seen:
            return row
        processor = self._processor.image_processor
        sides = row.media["image_grid_thw"][:, 1:] * processor.patch_size
        fed = tuple(
            replace(one, fed=(columns, rows)) for one, (rows, columns) in zip(boxes.seen, sides.tolist(), strict=True)
        )
        if boxes.placed and fed != boxes.seen:
            raise RenderingError(
                f"{row.source}: {type(processor).__name__} feeds images at {[one.fed for one in fed]} pixels where "
                f"{[one.fed for one in boxes.seen]} was worked out, so boxes in pixels after resizing would be wrong. "
                "Type --box_coordinates per_mille."
            )
        return replace(row, seen=fed)
