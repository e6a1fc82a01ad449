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
from vlm_lora.batching.prepared.levels import PIXELS, find_levels
from vlm_lora.batching.prepared.media import PreparedMedia
from vlm_lora.batching.prepared.store import TensorStore
from vlm_lora.batching.shapes import RowShape
from vlm_lora.data.conversation import Conversation, ImageRef, Turn
from vlm_lora.data.images.loader import ImageLimits, load_image
from vlm_lora.errors import ImageError

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
ANEW = {"phi4_multimodal": [1, 2, 1, 1, 2], "phi3_5": [1, 2, 1, 1, 2]}
"""Images of the rows that are encoded anew each time, by family: their pixel values have another name."""
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

    # Without asking for the pictures: from the second time on, no more than their batch is made.
    plain_rows = [plain.encode(row) for row in rows]
    assert all(same(reading.encode(row), other) for row, other in zip(rows, plain_rows, strict=True))
    counted: list[Conversation] = []
    encode = reading._encoded

    def count(row: Conversation, *given: Any) -> EncodedRow:
        counted.append(row)
        return encode(row, *given)

    reading._encoded = count
    again = [reading.encode(row) for row in rows]
    assert all(same(one, other) for one, other in zip(again, plain_rows, strict=True))
    assert not same(again[0], again[2])
    if family != "smolvlm":  # the size of its masks depends on the version
        assert [len(row.images) for row in counted if row.images] == ANEW.get(family, [])


def gemma_row(images: Path, name: str = "odd") -> Conversation:
    return row_of("gemma3", images, (name,))


def test_an_image_that_was_known_and_is_another_by_now_is_an_error_of_its_row(images: Path, tmp_path: Path) -> None:
    image = tmp_path / "odd.png"
    image.write_bytes((images / "odd.png").read_bytes())
    store = tmp_path / "store"
    encoder_by("gemma3", processor_of("gemma3")).keeping_images(TensorStore(store)).encode(gemma_row(tmp_path))
    # Known, but prepared by another processor: it has to be decoded again.
    other = encoder_by("gemma3", processor_by("gemma3", "torchvision")).keeping_images(TensorStore(store))
    load = other._load_image

    def changed(source: Any, **given: Any) -> Any:
        image.write_bytes((images / "large.png").read_bytes())
        return load(source, **given)

    other._load_image = changed
    with pytest.raises(
        ImageError, match=r"^rows.jsonl row 3: .*odd\.png: the image was changed while the run reads it"
    ):
        other.encode(gemma_row(tmp_path))
    other._load_image = load
    plain = encoder_by("gemma3", processor_by("gemma3", "torchvision"))
    assert same(other.encode(gemma_row(tmp_path)), plain.encode(gemma_row(tmp_path)))


def test_a_broken_image_is_told_as_without(images: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.png").write_bytes((images / "odd.png").read_bytes()[:-200])
    said = []
    encoder = encoder_by("gemma3", processor_of("gemma3"))
    for one in (encoder, encoder.keeping_images(TensorStore(tmp_path / "store"))):
        with pytest.raises(ImageError) as caught:
            one.encode(gemma_row(tmp_path))
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_only_the_size_that_fits_is_kept(images: Path, tmp_path: Path) -> None:
    processor = processor_of("qwen2_5_vl")
    row = row_of("qwen2_5_vl", images, ("large", "large"))
    whole = encoder_by("qwen2_5_vl", processor).encode(row)
    settings = {"max_length": len(whole.input_ids) - 4, "on_overflow": "shrink_images"}
    plain = encoder_by("qwen2_5_vl", processor, **settings).encode(row)
    assert plain.overflow
    store = TensorStore(tmp_path)
    encoder = encoder_by("qwen2_5_vl", processor, **settings).keeping_images(store)
    for _ in range(2):
        assert same(encoder.encode(row), plain)
    assert store.statistics.written == 2  # what is known of the image, and what was made of it at the size that fits


def test_levels_give_back_what_they_were_and_noise_finds_a_wrong_table() -> None:
    processor = processor_of("gemma3").image_processor

    def prepare(pictures: Any, **keywords: Any) -> Any:
        return processor(pictures, return_tensors="pt", **keywords)

    def by_place(pictures: Any, **keywords: Any) -> Any:
        """As a processor whose numbers depend on where a pixel lies as well."""
        made = prepare(pictures, **keywords)
        if not keywords.get("do_normalize", True):
            return made
        pixels = made[PIXELS].clone()
        pixels[..., : pixels.shape[-1] // 2] += 1
        return {PIXELS: pixels}

    levels = find_levels(prepare, 16)
    assert levels is not None
    raw = torch.arange(2 * 3 * 5 * 7, dtype=torch.uint8).reshape(2, 3, 5, 7)  # an odd number of pixels in a plane
    expected = torch.stack(
        [torch.from_numpy(levels.table)[colour][raw[:, colour].long()] for colour in range(3)], dim=1
    )
    assert torch.equal(levels.values(raw), expected)
    assert torch.equal(levels.values(raw.repeat(1, 1, 2, 1)), expected.repeat(1, 1, 2, 1))
    assert find_levels(by_place, 16) is None
    assert find_levels(refuse_keywords, 16) is None


def refuse_keywords(pictures: Any, **keywords: Any) -> Any:
    raise TypeError(f"unexpected keywords {list(keywords)}")
