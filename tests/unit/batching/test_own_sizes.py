"""A size of its own for one image, as Qwen-VL's parts say it: shown so, or a bad row."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.mask_cases import encoder_of
from vlm_lora.batching.canvases import own_size
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.conversation import Conversation, ImageRef, OwnSize, RowSource, Text, Turn
from vlm_lora.data.dataset import load_splits
from vlm_lora.data.images.values import ImagePlace, read_image_value
from vlm_lora.errors import DataError, ImageError


def row_of(size: OwnSize | None, sides: tuple[int, int] = (200, 120)) -> Conversation:
    """Return a question about one image with a size of its own."""
    image = ImageRef(source=Image.new("RGB", sides, "red"), size=size)
    turns = (
        Turn(role="user", parts=(image, Text(text="What?"))),
        Turn(role="assistant", parts=(Text(text="x"),)),
    )
    return Conversation(turns=turns, source=RowSource(file="a.jsonl", row=3))


def tokens(size: OwnSize | None) -> int:
    (count,) = encoder_of("qwen2_5_vl").encode(row_of(size), keep_images=True).image_tokens
    return count


def test_three_images_of_three_sizes() -> None:
    """The processor's own budget is 1024 to 4096 pixels, of which 256 are a token."""
    assert tokens(None) == 15
    assert tokens(OwnSize(max_pixels=1024)) == 6, "32x16, enlarged to the processor's least"
    assert tokens(OwnSize(resized_height=32, resized_width=32)) == 4
    assert tokens(OwnSize(resized_height=64, resized_width=48)) == 12


def smart_resize(height: int, width: int, factor: int, least: int, most: int) -> tuple[int, int]:
    """What Qwen's makers describe: multiples of the factor, as close as the bounds let the sides be."""
    tall, wide = max(factor, round(height / factor) * factor), max(factor, round(width / factor) * factor)
    if tall * wide > most:
        beta = math.sqrt(height * width / most)
        return (
            max(factor, math.floor(height / beta / factor) * factor),
            max(factor, math.floor(width / beta / factor) * factor),
        )
    if tall * wide < least:
        beta = math.sqrt(least / (height * width))
        return math.ceil(height * beta / factor) * factor, math.ceil(width * beta / factor) * factor
    return tall, wide


class Qwen2VLImageProcessorOfThisTest:
    patch_size, merge_size = 14, 2


def test_sizes_are_those_of_qwens_own_tool() -> None:
    generator = np.random.default_rng(0)
    images = Qwen2VLImageProcessorOfThisTest()
    for _ in range(200):
        width, height = (int(side) for side in generator.integers(1, 3000, 2))
        least, most = sorted(int(bound) for bound in generator.integers(28 * 28, 4_000_000, 2))
        expected = smart_resize(height, width, 28, least, most)
        assert own_size(OwnSize(min_pixels=least, max_pixels=most), (width, height), images) == expected[::-1]
        given = OwnSize(resized_height=height, resized_width=width)
        assert own_size(given, (640, 480), images) == smart_resize(height, width, 28, 4 * 784, 16384 * 784)[::-1]


@pytest.mark.parametrize("family", ["gemma3", "llava"])
def test_other_families_say_that_they_cannot(family: str) -> None:
    assert encoder_of(family).encode(row_of(None)), "the control"
    with pytest.raises(ImageError, match=r"a\.jsonl row 3: an image has a size of its own .*Qwen-VL's"):
        encoder_of(family).encode(row_of(OwnSize(max_pixels=1024)))


def read(folder: Path, part: dict[str, Any], **row: Any) -> ImageRef:
    """Return the image of the one row of a file that has this part."""
    import json

    Image.new("RGB", (8, 8)).save(folder / "a.png")
    content = [part, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "x"}]
    (folder / "train.jsonl").write_text(json.dumps({"messages": messages, **row}) + "\n")
    config = DataConfig(dataset_name=str(folder / "train.jsonl"), validation_fraction=0.0)
    data = load_splits(config, need_train=True, need_validation=False).train
    assert data is not None
    (image,) = data[0].images
    return image


def test_parts_and_objects_carry_their_size(tmp_path: Path) -> None:
    part = {"type": "image", "image": "a.png"}
    assert read(tmp_path, part).size is None, "the control"
    assert read(tmp_path, {**part, "min_pixels": 4, "max_pixels": None}).size == OwnSize(min_pixels=4)
    sides = {"resized_height": 32, "resized_width": 64}
    assert read(tmp_path, {**part, **sides}).size == OwnSize(**sides)
    fractions = {key: float(side) for key, side in sides.items()}
    assert repr(read(tmp_path, {**part, **fractions}).size) == repr(OwnSize(**sides)), "as tables store whole numbers"
    assert read(tmp_path, {"type": "image", "max_pixels": 9}, images=["a.png"]).size == OwnSize(max_pixels=9)
    object_ = {"path": "a.png", "max_pixels": 9}
    assert read(tmp_path, {"type": "image"}, images=[object_]).size == OwnSize(max_pixels=9)
    url = {"type": "image_url", "image_url": {"url": "a.png", "max_pixels": 9}}
    assert read(tmp_path, url).size == OwnSize(max_pixels=9)
    with pytest.raises(DataError, match="two sizes that differ"):
        read(tmp_path, {"type": "image", "max_pixels": 8}, images=[object_])


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"total_pixels": 9}, "total_pixels is for the frames of a video"),
        ({"resized_height": 9}, "given as resized_height. Write resized_height and resized_width, both"),
        ({"resized_height": 9, "resized_width": 9, "max_pixels": 9}, "Write resized_height and resized_width, both"),
        ({"min_pixels": 10, "max_pixels": 9}, "min_pixels 10 are more than its max_pixels"),
        ({"max_pixels": "9"}, "max_pixels is '9'. It must be a whole number"),
        ({"max_pixels": 9.5}, "max_pixels is 9.5. It must be a whole number"),
        ({"max_pixels": 0.0}, "max_pixels is 0. It must be a whole number"),
        ({"max_pixels": 0}, "max_pixels is 0. It must be a whole number"),
        ({"max_pixels": True}, "max_pixels is True. It must be a whole number"),
    ],
)
def test_what_is_no_size_is_a_bad_row(sizes: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ImageError) as refused:
        read_image_value({"path": "a.png", **sizes}, ImagePlace(folder=tmp_path))
    assert words in str(refused.value)
    with pytest.raises(DataError, match="Turn 1"):
        read(tmp_path, {"type": "image", "image": "a.png", **sizes})


def test_a_few_sizes_for_all_rows_count_for_these_too(caplog: pytest.LogCaptureFixture) -> None:
    encoder = encoder_of("qwen2_5_vl").with_canvases([(64, 64)])
    row = encoder.encode(row_of(OwnSize(resized_height=32, resized_width=32)), keep_images=True)
    assert [picture.size for picture in row.pictures] == [(64, 64)]
    assert "--static_shapes false shows them at their own" in caplog.text
