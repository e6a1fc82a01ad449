"""A row's images on their way to tensors, each step of which is done once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image

from vlm_lora.batching.encoded import EncodedRow
from vlm_lora.batching.prepared.levels import PIXELS
from vlm_lora.batching.prepared.media import PreparedMedia
from vlm_lora.batching.prepared.pictures import Pictures
from vlm_lora.batching.prepared.processor import PreparedImageProcessor
from vlm_lora.batching.prepared.rows import KeptRows, describe_encoder
from vlm_lora.batching.prepared.store import TensorStore
from vlm_lora.data.conversation import Conversation, ImageSource
from vlm_lora.errors import RenderingError


class RowImages:
    """What a row encoder asks for its images where they are kept. Can be pickled.

    Args:
        processor: the model's.
        store: where what was made is kept.
        limits: what is refused of an image.
        settings: of the encoder.
    """

    def __init__(self, processor: Any, store: TensorStore, limits: Any, settings: Any) -> None:
        self.store = store
        self.image_processor = PreparedImageProcessor(processor.image_processor, store)
        self._pictures = Pictures(store, limits)
        self._rows = KeptRows(
            self.image_processor, self._pictures, store, describe_encoder(processor, (repr(limits), settings))
        )

    def row(
        self, conversation: Conversation, canvases: Any, make: Callable[[], EncodedRow], *, anew: bool
    ) -> EncodedRow:
        """Return an encoded row, from what is kept where it was encoded before.

        Args:
            conversation: the row.
            canvases: sizes that its images are brought to.
            make: encodes it.
            anew: encode it in any case.
        """
        key = self._rows.key(conversation, canvases)
        known = None if anew or key is None else self._rows.get(key, conversation)
        if known is not None:
            return known
        row = make()
        self.image_processor.keep()
        if key is not None:
            self._rows.put(key, row)
        return row

    def measured(self, conversation: Conversation, canvases: Any, make: Callable[[], EncodedRow]) -> tuple[int, int]:
        """Keep what a row is made into; return the bytes on disk of its images', and of its own.

        Raises:
            DataError: as `make`.
        """
        with self.store.measuring() as sizes:
            self.row(conversation, canvases, make, anew=True)
        own = sizes.pop(self._rows.key(conversation, canvases) or "", 0)
        return sum(sizes.values()), own

    def open(self, source: ImageSource, decode: Callable[[], Image.Image]) -> Image.Image:
        """Return an image, decoded only where nothing is known of it.

        Raises:
            ImageError: it cannot be read.
        """
        return self._pictures.open(source, decode)

    def media(self, media: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Return the media tensors that a processor made of the last answer, levels as what they stand for.

        Raises:
            RenderingError: the processor did something to pixel values that were levels.
        """
        answered = self.image_processor.answered
        if answered is None or PIXELS not in media:
            return media
        pixels, levels = answered
        # A processor may put them together otherwise (InternVL's joins tiles); none computes with whole numbers.
        if media[PIXELS].dtype != torch.uint8 or media[PIXELS].shape[1:] != pixels.shape[1:]:
            raise RenderingError(
                "the processor changes pixel values after its image processor. Type --image_cache off."
            )
        return PreparedMedia({**media, PIXELS: media[PIXELS].contiguous()}, levels)

    def keep(self) -> None:
        """Keep what was made of the last row's images."""
        self.image_processor.keep()
