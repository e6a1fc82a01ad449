"""Processors that want to be called otherwise than most: what `STYLES` says of each, held against its own class."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from support.families.processors import build_processor
from support.families.shapes import shape_of
from support.mask_cases import conversation, marked, picture, read_image
from vlm_lora.batching.collator import join_rows_media
from vlm_lora.batching.encoding import RowEncoder
from vlm_lora.batching.style import CHAT, RenderingStyle, style_for
from vlm_lora.errors import RenderingError

ROW = conversation((("user", ("image", "What is it?")), ("assistant", ("a red bus",))), image=picture(size=(32, 32)))


@cache
def processor_of(model_type: str) -> Any:
    shape = shape_of(model_type)
    return build_processor(model_type, shape, tuple(shape.ids.values()))


def encoder_of(model_type: str, style: RenderingStyle) -> RowEncoder:
    processor = processor_of(model_type)
    ends = frozenset([processor.tokenizer.eos_token_id])
    return RowEncoder(processor, style, eos_token_ids=ends, max_length=None, load_image=read_image)


@pytest.mark.parametrize("model_type", ["cosmos3_edge", "chameleon", "got_ocr2", "qianfan_ocr", "llama4"])
def test_an_answer_and_its_end_are_supervised(model_type: str) -> None:
    row = encoder_of(model_type, style_for(model_type)).encode(ROW)
    assert marked(row, processor_of(model_type).tokenizer).rstrip().endswith("⟦a red bus<|im_end|>⟧")


def test_counts_in_lists_become_tensors() -> None:
    """Unlimited-OCR's processor counts patches so, and its model takes lists back (`head/completion.py`)."""
    row = encoder_of("unlimited_ocr", style_for("unlimited_ocr")).encode(ROW)
    assert row.media["num_local_patches"].tolist() == [4]
    assert row.media["patches_grid"].tolist() == [[2, 2]]
    with pytest.raises(RenderingError, match=r"returns 'num_local_patches' as a list"):
        encoder_of("unlimited_ocr", CHAT).encode(ROW)


def test_cosmos_is_asked_for_the_kinds_of_its_tokens() -> None:
    """Its model counts positions by them and its processor leaves them out unless asked."""
    kinds = encoder_of("cosmos3_edge", style_for("cosmos3_edge")).encode(ROW).token_tensors["mm_token_type_ids"]
    assert kinds.sum() == 4
    assert "mm_token_type_ids" not in encoder_of("cosmos3_edge", CHAT).encode(ROW).token_tensors


def test_chameleon_s_separator_is_not_written_behind_a_whole_conversation() -> None:
    separator = processor_of("chameleon").tokenizer.sep_token
    ours, plain = (encoder_of("chameleon", style).encode(ROW).text for style in (style_for("chameleon"), CHAT))
    assert plain == f"{ours}{separator}"


@pytest.mark.parametrize(("model_type", "words"), [("got_ocr2", "Nested images"), ("qianfan_ocr", "0 placeholders")])
def test_without_its_style_a_row_is_refused(model_type: str, words: str) -> None:
    with pytest.raises(RenderingError, match=words):
        encoder_of(model_type, CHAT).encode(ROW)


def test_pixels_in_half_precision_are_read_in_float32() -> None:
    """Llama 4's processor returns bfloat16, which the layers of a model in float32 do not take."""
    row = encoder_of("llama4", style_for("llama4")).encode(ROW)
    pixels = join_rows_media([row], "pixel_values", style_for("llama4").batching("pixel_values"))
    assert pixels.dtype == torch.float32
    direct = processor_of("llama4").image_processor(picture(size=(32, 32)), return_tensors="pt")["pixel_values"]
    assert direct.dtype == torch.bfloat16
    assert torch.equal(pixels, direct.float())
