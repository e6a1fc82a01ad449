"""Tokens and patches of each image, against rows that hold one image alone."""

from __future__ import annotations

import pytest
import torch

from support.mask_cases import FAMILIES, IMAGE, conversation, encoder_of, picture
from vlm_lora.batching.encoded import EncodedRow
from vlm_lora.batching.image_counts import patches_by_image
from vlm_lora.data.conversation import Conversation, ImageRef, Turn

NOT_TOLD = {"phi3_v"}
"""Its placeholders are negative ids, of which nothing says where one image ends."""
OF_ONE_TILE = {"llava_onevision"}
"""Several images take one tile each; a single one takes as many as its size asks for."""
SIZES = ((64, 64), (120, 60))


def row_of(*turns: tuple[str, ...]) -> Conversation:
    """Return exchanges that each show one image of `SIZES`, or each other's."""
    sizes = iter(SIZES)
    given = conversation([turn for parts in turns for turn in (("user", parts), ("assistant", ("yes",)))])

    def shown(turn: Turn) -> Turn:
        parts = [
            ImageRef(source=picture(size=next(sizes))) if isinstance(part, ImageRef) else part for part in turn.parts
        ]
        return Turn(role=turn.role, parts=tuple(parts))

    return Conversation(turns=tuple(map(shown, given.turns)), source=given.source)


def encoded(family: str, *turns: tuple[str, ...]) -> EncodedRow:
    return encoder_of(family).encode(row_of(*turns), keep_images=True)


def alone(family: str, size: tuple[int, int]) -> int:
    row = conversation((("user", (IMAGE, "a")), ("assistant", ("b",))), image=picture(size=size))
    (count,) = encoder_of(family).encode(row, keep_images=True).image_tokens
    return count


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"paligemma"} - NOT_TOLD - OF_ONE_TILE))
def test_images_of_two_questions_take_what_each_takes_alone(family: str) -> None:
    expected = tuple(alone(family, size) for size in SIZES)
    assert all(expected)
    assert encoded(family, (IMAGE, "What?"), (IMAGE, "And this?")).image_tokens == expected


@pytest.mark.parametrize("family", sorted(NOT_TOLD))
def test_a_family_whose_tokens_are_not_told_apart_says_so(family: str) -> None:
    assert encoded(family, (IMAGE, "What?"), (IMAGE, "And this?")).image_tokens == (0, 0)


def test_images_side_by_side_are_told_apart_where_their_tokens_are() -> None:
    expected = tuple(alone("qwen2_5_vl", size) for size in SIZES)
    assert expected[0] != expected[1]
    assert encoded("qwen2_5_vl", (IMAGE, IMAGE, "Which?")).image_tokens == expected
    assert encoded("idefics3", (IMAGE, IMAGE, "Which?")).image_tokens == (0, 0), "nothing stands between them"
    same = conversation((("user", (IMAGE, IMAGE, "Which?")), ("assistant", ("this",))), image=picture(size=SIZES[1]))
    assert encoder_of("idefics3").encode(same, keep_images=True).image_tokens == (alone("idefics3", SIZES[1]),) * 2


def test_a_row_without_images() -> None:
    assert encoded("gemma3", ("What?",)).image_tokens == ()


def test_patches() -> None:
    row = encoded("qwen2_5_vl", (IMAGE, IMAGE, "Which?"))
    patches = patches_by_image(row.media, 2)
    assert sum(patches) == len(row.media["pixel_values"])
    assert patches[0] != patches[1]
    assert patches_by_image(encoded("gemma3", (IMAGE, IMAGE, "Which?")).media, 2) == (1, 1)
    tiles = {"pixel_values": torch.zeros(1, 5, 3, 8, 8)}
    assert patches_by_image(tiles, 1) == (5,)
    assert patches_by_image(tiles, 2) == (0, 0), "the tiles of a row, not of an image"
    assert patches_by_image({}, 1) == (0,)
