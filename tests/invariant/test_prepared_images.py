"""Images that were made into tensors once: bit for bit those that are made anew, in every family, by both backends."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from support.mask_cases import FAMILIES, IMAGE, conversation, new_encoder, processor_of, style_of
from vlm_lora.batching.collator import Collator
from vlm_lora.batching.encoded import EncodedRow
from vlm_lora.batching.encoding import RowEncoder
from vlm_lora.batching.prepared.media import PreparedMedia
from vlm_lora.batching.prepared.store import TensorStore
from vlm_lora.batching.shapes import RowShape
from vlm_lora.data.conversation import Conversation, ImageRef, Turn
from vlm_lora.data.images.loader import ImageLimits, load_image

SIZES = {"odd": (61, 37), "tall": (25, 90), "square": (32, 32), "large": (150, 101)}
ROWS = (("odd",), ("tall", "odd"), ("square",), ("large",), ("large", "large"), ())
ONE_IMAGE = ("paligemma",)
"""Families that refuse a row of several."""
AS_LEVELS = {
    "gemma3",
    "gemma3n",
    "internvl",
    "llava",
    "paligemma",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_5-nothink",
    "qwen3_5-think",
}
BACKENDS = ("pil", "torchvision")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number, (name, (width, height)) in enumerate(SIZES.items()):
        samples = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(samples).save(folder / f"{name}.png")
    return folder


def processor_by(family: str, backend: str) -> Any | None:
    """Return a family's processor with the image processor of a backend; None where it has none."""
    processor = processor_of(family)
    own = type(processor.image_processor)
    if backend == "pil":
        return processor
    name = own.__name__.removesuffix("Pil")
    torchvision = getattr(transformers, name if name != own.__name__ else f"{name}Fast", None)
    if torchvision is None:
        return None
    settings = processor.image_processor.to_dict()
    for given in ("image_processor_type", "processor_class"):
        settings.pop(given, None)
    other = copy.copy(processor)
    other.image_processor = torchvision(**settings)
    return other


def row_of(family: str, images: Path, names: tuple[str, ...]) -> Conversation:
    """Return a row of these images; a processor that shows one image a row gets the first."""
    shown = names[:1] if family in ONE_IMAGE else names
    row = conversation((("user", (*[IMAGE] * len(shown), "What is it?")), ("assistant", ("a red bus",))))
    sources = iter(shown)
    turns = tuple(
        Turn(
            role=turn.role,
            parts=tuple(
                ImageRef(source=images / f"{next(sources)}.png") if isinstance(part, ImageRef) else part
                for part in turn.parts
            ),
        )
        for turn in row.turns
    )
    return Conversation(turns=turns, source=row.source)


def encoder_by(family: str, processor: Any, **settings: Any) -> RowEncoder:
    return new_encoder(family, processor, load_image=load_image, image_limits=ImageLimits(), **settings)


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("nothing is decoded or prepared again")


def same_tensors(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(
        (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape)
        and torch.equal(one[name], other[name])
        for name in one
    )


def same(one: EncodedRow, other: EncodedRow) -> bool:
    return (
        torch.equal(one.input_ids, other.input_ids)
        and torch.equal(one.labels, other.labels)
        and same_tensors(one.token_tensors, other.token_tensors)
        and same_tensors(one.media, other.media)
        and (one.image_tokens, one.seen, RowShape.of(one)) == (other.image_tokens, other.seen, RowShape.of(other))
        and [picture.size for picture in one.pictures] == [picture.size for picture in other.pictures]
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_rows_are_the_same_bit_for_bit(family: str, backend: str, images: Path, tmp_path: Path) -> None:
    processor = processor_by(family, backend)
    if processor is None:
        assert backend == "torchvision"
        return
    plain = encoder_by(family, processor)
    rows = [row_of(family, images, names) for names in ROWS if names or family not in ONE_IMAGE]
    expected = [plain.encode(row, keep_images=True) for row in rows]

    building = encoder_by(family, processor).keeping_images(TensorStore(tmp_path))
    built = [building.encode(row, keep_images=True) for row in rows]
    reading = pickle.loads(pickle.dumps(encoder_by(family, processor).keeping_images(TensorStore(tmp_path))))
    reading._load_image = refuse
    store = reading._kept.image_processor._store
    read = [reading.encode(row, keep_images=True) for row in rows]

    assert all(same(one, other) for one, other in zip(built, expected, strict=True))
    assert all(same(one, other) for one, other in zip(read, expected, strict=True))
    assert store.statistics.misses == 0
    assert store.statistics.hits > 0
    assert isinstance(read[0].media, PreparedMedia) == (family in AS_LEVELS)
    # The control: another image is another row.
    assert not same(read[0], expected[2])

    collators = [Collator(encoder, style_of(family), pad_token_id=0) for encoder in (plain, reading)]
    batches = [collator.collate(some) for collator, some in zip(collators, (expected, read), strict=True)]
    assert same_tensors(*batches)
    alike = [collator.collate([some[0], some[0]]) for collator, some in zip(collators, (expected, read), strict=True)]
    assert same_tensors(*alike)
