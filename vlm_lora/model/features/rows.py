"""What a batch holds of its rows' images where features are kept: the stored ones, or what they are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import torch

from vlm_lora.batching.encoded import EncodedRow
from vlm_lora.batching.prepared.media import PreparedMedia
from vlm_lora.batching.prepared.store import TensorStore

NAME = "features"
"""Of the tensor in a store's entry."""


@dataclass(frozen=True, kw_only=True)
class RowFeatures:
    """The images of one row; without tensors where another row of the batch has the same."""

    key: str
    """Of the entry in the store."""
    stored: torch.Tensor | None = None
    """The features, where the store had them when the batch was made."""
    media: Mapping[str, torch.Tensor] | None = None
    """What they are made from, where it had not."""

    def pin_memory(self) -> RowFeatures:
        """Return the same in memory that a device reads fast; torch's loader asks for it."""
        stored = None if self.stored is None else self.stored.pin_memory()
        media = None if self.media is None else {name: tensor.pin_memory() for name, tensor in self.media.items()}
        return replace(self, stored=stored, media=media)


class FeatureRows:
    """A collator's source of `RowFeatures`. Can be pickled into loader workers.

    Args:
        store: where features are kept.
        tower: the hash of everything that features depend on besides the images (`fingerprint`).
        read_beside: names of media tensors that the model reads itself, which stay in the batch.
    """

    def __init__(self, store: TensorStore, tower: str, read_beside: Sequence[str]) -> None:
        self._store = store
        self._tower = tower
        self.read_beside = tuple(read_beside)

    def key(self, media: Mapping[str, torch.Tensor]) -> str:
        """Return the key of a row's features: the hash of its media tensors, all of them, and of the tower.

        The tensors are what the tower reads: other pixels, another number of images, another processor, size or
        backend are another key. Where pixel values lie as levels, these and what they stand for are hashed.
        """
        digest = sha256(self._tower.encode())
        if isinstance(media, PreparedMedia):
            digest.update(f"levels {media.levels.layout}\0".encode())
            digest.update(media.levels.table.tobytes())
            media = media.tensors
        for name, tensor in sorted(media.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
            digest.update(bytes_of(tensor))
        return digest.hexdigest()

    def holds(self, media: Mapping[str, torch.Tensor]) -> bool:
        """Say whether a row's features lie in the store."""
        return self.key(media) in self._store

    def __call__(self, rows: Sequence[EncodedRow]) -> tuple[RowFeatures | None, ...]:
        """Return the features of each row, in order; None where a row has no image. A pack's rows come one by one."""
        found: list[RowFeatures | None] = []
        seen: set[str] = set()
        for media in (media for row in rows for media in row.packed_media or (row.media,)):
            if not media:
                found.append(None)
                continue
            key = self.key(media)
            if key in seen:
                found.append(RowFeatures(key=key))
                continue
            seen.add(key)
            entry = self._store.get(key)
            found.append(
                RowFeatures(key=key, media=media) if entry is None else RowFeatures(key=key, stored=entry[NAME])
            )
        return tuple(found)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return a tensor's bytes, in the order of its elements, without a copy where it lies so on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
