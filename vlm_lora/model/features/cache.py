"""Kept features of images: those in the batch or the store, else made, stored, and used as they were stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from hashlib import sha256
from typing import Any, TypeAlias

import torch
from torch import nn

from vlm_lora.batching.collator import FEATURES
from vlm_lora.batching.encoded import EncodedRow
from vlm_lora.batching.prepared.store import TensorStore
from vlm_lora.model.features.rows import NAME, FeatureRows, RowFeatures, bytes_of
from vlm_lora.model.features.tower import Tower
from vlm_lora.model.parts import Parts, base_of

_Maker: TypeAlias = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]

FORMAT = 1
"""Changes with what is stored of a row."""
_NOT_OF_THE_TOWER = ("text_config", "use_cache", "_name_or_path")


class FeatureCache:
    """Gives a model the features of a batch's images in place of their pixels.

    The features of a row are made from its images alone, whatever else is in its batch, so they are the same bits
    whenever they are made. The step that makes them uses what is stored.

    Args:
        tower: of the model.
        rows: what the collator has put into batches.
        store: where features are kept.
        dtype: what they are kept in.
        on_use: is called for each batch with features, before the model is.
    """

    def __init__(
        self,
        tower: Tower,
        rows: FeatureRows,
        store: TensorStore,
        *,
        dtype: torch.dtype,
        on_use: Callable[[], None] = lambda: None,
    ) -> None:
        self._tower = tower
        self._rows = rows
        self._store = store
        self._dtype = dtype
        self._on_use = on_use
        self._blank: torch.Tensor | None = None
        self.made = 0
        """How many rows' features the tower was run for here."""
        self.read = 0
        """How many came from the store, or from another row of their batch."""

    @contextmanager
    def given(
        self,
        inputs: Mapping[str, Any],
        prepare: Callable[[Any], Any],
        computing: Callable[[], AbstractContextManager[Any]],
    ) -> Iterator[dict[str, Any]]:
        """Yield the model's inputs with features in place of media; within the context it is to be called on them.

        Args:
            inputs: a batch, on the model's device.
            prepare: brings media tensors to where the tower is, as it brought the batch.
            computing: returns the context that the model's forward pass runs in (autocast).
        """
        inputs = dict(inputs)
        rows: Sequence[RowFeatures | None] | None = inputs.pop(FEATURES, None)
        if rows is None:
            yield inputs
            return

        make = self._maker(prepare, computing)
        known: dict[str, torch.Tensor] = {}
        features = [None if row is None else self._of(row, known, make) for row in rows]
        device = inputs["input_ids"].device
        given = self._tower.inputs(features, lambda: self._of_blank(make))
        self._on_use()
        with self._tower.given():
            yield {**inputs, **{name: tensor.to(device, non_blocking=True) for name, tensor in given.items()}}

    def keep(
        self,
        row: EncodedRow,
        prepare: Callable[[Any], Any],
        computing: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        """Make and store a row's features where they are not there yet, as the step that first needs them would.

        Args:
            row: with images.
            prepare: as for `given`.
            computing: as for `given`.
        """
        for media in row.packed_media or (row.media,):
            self._stored_or_made(self._rows.key(media), media, self._maker(prepare, computing))

    def keep_blank(self, prepare: Callable[[Any], Any], computing: Callable[[], AbstractContextManager[Any]]) -> None:
        """As `keep`, for the image that fills up rows with fewer images than others, where the model has one."""
        if self._tower.fills_up:
            self._of_blank(self._maker(prepare, computing))

    @property
    def refused(self) -> int:
        """How many rows' features could not be stored here."""
        return self._store.statistics.refused

    def _maker(self, prepare: Callable[[Any], Any], computing: Callable[[], AbstractContextManager[Any]]) -> _Maker:
        def make(media: Mapping[str, torch.Tensor]) -> torch.Tensor:
            with computing():
                return self._tower.features(prepare(dict(media)))

        return make

    def close(self) -> None:
        """Let what was stored reach the disk, and say what was damaged."""
        self._store.close()
        self._store.say_damage()

    def _of(self, row: RowFeatures, known: dict[str, torch.Tensor], make: _Maker) -> torch.Tensor:
        """Return a row's features, on the CPU."""
        if row.key in known or row.media is None:
            self.read += 1
        if row.key not in known:
            found = row.stored if row.media is None else self._stored_or_made(row.key, row.media, make)
            assert found is not None, "the first row of a batch with a key has its tensors"
            known[row.key] = found
        return known[row.key]

    def _stored_or_made(self, key: str, media: Mapping[str, torch.Tensor], make: _Maker) -> torch.Tensor:
        entry = self._store.get(key)  # another process may have made it since the batch was
        if entry is not None:
            self.read += 1
            return entry[NAME]
        self.made += 1
        kept = make(media).to(self._dtype).cpu()
        self._store.put(key, {NAME: kept})
        return kept

    def _of_blank(self, make: _Maker) -> torch.Tensor:
        if self._blank is None:
            media = self._tower.blank_media()
            self._blank = self._stored_or_made(self._rows.key(media), media, make)
        return self._blank


def kept_dtype(model: nn.Module, parts: Parts, autocast: torch.dtype | None) -> torch.dtype:
    """Return the dtype that features are kept in: the language model's, or the tower's where that is narrower.

    Args:
        model: with or without PEFT around it.
        parts: of the model.
        autocast: what autocast computes in; None without.
    """
    base = base_of(model)
    language: torch.dtype = base.get_input_embeddings().weight.dtype  # type: ignore[operator]
    own = (p.dtype for name, p in base.named_parameters() if parts.part_of(name) in ("vision", "projector"))
    tower = autocast or next((dtype for dtype in own if dtype.is_floating_point), language)
    return tower if tower.itemsize < language.itemsize else language


def fingerprint(model: nn.Module, parts: Parts, **circumstances: object) -> str:
    """Return a hash of everything that the features of given media tensors depend on.

    That is the weights of tower and projector with their names and dtypes, the model's configuration except that of
    the text model, the tower's attention, and what is given.

    Args:
        model: with or without PEFT around it.
        parts: of the model.
        **circumstances: what else features depend on (device, autocast, versions of packages).
    """
    base = base_of(model)
    settings = {k: v for k, v in base.config.to_dict().items() if k not in _NOT_OF_THE_TOWER}  # type: ignore[operator, union-attr]
    vision = getattr(base.config, "vision_config", None)
    said = {
        "format": FORMAT,
        "class": f"{type(base).__module__}.{type(base).__qualname__}",
        "settings": settings,
        "attention": getattr(vision, "_attn_implementation", None),
        **circumstances,
    }
    digest = sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for name, tensor in (*base.named_parameters(), *base.named_buffers()):
        if parts.part_of(name) in ("vision", "projector"):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
            digest.update(bytes_of(tensor))
    return digest.hexdigest()
