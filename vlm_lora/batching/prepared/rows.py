"""Rows that were encoded once: ids, labels and small tensors next to their images, which they name.

A row is known by what it says, its images, and all settings of the encoder. Rows without images, rows with boxes, rows
that were made to fit, and rows with large media tensors beside their pixel values are encoded anew each time, of kept
images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any

import torch

from vlm_lora.batching.boxes.conventions import SeenImage
from vlm_lora.batching.encoded import EncodedRow
from vlm_lora.batching.prepared.levels import PIXELS
from vlm_lora.batching.prepared.media import PreparedMedia
from vlm_lora.batching.prepared.pictures import Pictures
from vlm_lora.batching.prepared.processor import PreparedImageProcessor, described, unpacked
from vlm_lora.batching.prepared.store import TensorStore
from vlm_lora.config.version import __version__
from vlm_lora.data.conversation import Conversation, ImageRef, Text

FORMAT = 1
"""Changes with what is kept of a row."""

SMALL = 1 << 16
"""Bytes of media tensors beside pixel values that are kept with a row; one with more is encoded anew."""

_TEXT, _ABOUT = ":text", ":about"
_PARTS = ("token_tensors", "media")


def describe_encoder(processor: Any, settings: Any) -> str:
    """Return a hash of everything but the row that decides what a row becomes.

    Args:
        processor: the model's.
        settings: of the encoder; its `repr` says them all.
    """
    tokenizer = processor.tokenizer
    plain = {
        name: value for name, value in vars(processor).items() if isinstance(value, str | int | float | bool | None)
    }
    parts = [
        str(FORMAT),
        __version__,
        type(processor).__qualname__,
        described(processor.image_processor),
        repr(sorted(plain.items(), key=str)),
        repr(getattr(processor, "chat_template", None)),
        repr(tokenizer.chat_template),
        repr(tokenizer.special_tokens_map),
        tokenizer.backend_tokenizer.to_str(),
        repr(settings),
    ]
    return sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()


class KeptRows:
    """Encoded rows by what they say. Can be pickled.

    Args:
        images: prepares and keeps their images.
        pictures: knows images by their bytes.
        store: where rows are kept.
        encoder: what `describe_encoder` says.
    """

    def __init__(self, images: PreparedImageProcessor, pictures: Pictures, store: TensorStore, encoder: str) -> None:
        self._images = images
        self._pictures = pictures
        self._store = store
        self._encoder = encoder

    def key(self, conversation: Conversation, canvases: Any) -> str | None:
        """Return what a row is known by; None for one that is encoded anew each time."""
        if not conversation.images:
            return None
        turns: list[Any] = []
        for turn in conversation.turns:
            parts: list[Any] = []
            for part in turn.parts:
                if isinstance(part, ImageRef):
                    digest = self._pictures.digest(part.source)
                    if digest is None:
                        return None
                    parts.append([digest, repr(part.size)])
                elif isinstance(part, Text):
                    parts.append(repr(part))
                else:
                    return None
            turns.append([repr(replace(turn, parts=())), parts])
        content = [self._encoder, repr(canvases), repr(conversation.tools), turns]
        return sha256(json.dumps(content).encode(errors="surrogatepass")).hexdigest()

    def get(self, key: str, conversation: Conversation) -> EncodedRow | None:
        """Return a row as it was encoded; None where it or its images are not there."""
        if key not in self._store:
            return None
        kept = self._store.get(key)
        if kept is None:
            return None
        about = json.loads(kept[_ABOUT].numpy().tobytes())
        tensors: dict[str, dict[str, torch.Tensor]] = {part: {} for part in _PARTS}
        for name, tensor in kept.items():
            part, _, own = name.partition(" ")
            if part in tensors:
                tensors[part][own] = tensor
        media: Mapping[str, torch.Tensor] = tensors["media"]
        if about["images"]:
            levels = self._images.in_use
            answer = self._store.get(about["images"])
            if answer is None or (about["levels"] and levels is None):
                return None
            media = {**media, PIXELS: unpacked(answer)[PIXELS]}
            if about["levels"] and levels is not None:
                media = PreparedMedia(media, levels)
        sizes = ([None if size is None else tuple(size) for size in sizes] for sizes in about["seen"])
        return EncodedRow(
            input_ids=kept["input_ids"],
            labels=kept["labels"],
            token_tensors=tensors["token_tensors"],
            media=media,
            text=kept[_TEXT].numpy().tobytes().decode(errors="surrogatepass"),
            source=conversation.source,
            seen=tuple(SeenImage(size=size, given=given, fed=fed) for size, given, fed in sizes),  # type: ignore[arg-type]
        )

    def put(self, key: str, row: EncodedRow) -> None:
        """Keep a row whose images are kept, if it is one that can be."""
        if row.overflow or row.regions or row.answer is not None:
            return
        media = dict(row.media.tensors if isinstance(row.media, PreparedMedia) else row.media)
        pixels, images = media.pop(PIXELS, None), ""
        if pixels is not None:
            images, given = self._images.last
            # InternVL's processor joins tiles to a tensor of its own, with the same content.
            same = pixels is given or (isinstance(given, torch.Tensor) and torch.equal(pixels, given))
            if not same or images not in self._store:
                return
        if sum(tensor.nbytes for tensor in media.values()) > SMALL:
            return
        about = {
            "images": images,
            "levels": isinstance(row.media, PreparedMedia),
            "seen": [[one.size, one.given, one.fed] for one in row.seen],
        }
        tensors = {"input_ids": row.input_ids, "labels": row.labels}
        for part, some in zip(_PARTS, (row.token_tensors, media), strict=True):
            tensors |= {f"{part} {name}": tensor for name, tensor in some.items()}
        texts = {_TEXT: row.text.encode(errors="surrogatepass"), _ABOUT: json.dumps(about).encode()}
        tensors |= {name: torch.frombuffer(bytearray(text), dtype=torch.uint8) for name, text in texts.items()}
        self._store.put(key, tensors)
