"""Rows that are too long: made smaller by whole images and whole turns, or reported; never cut."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import pytest
import torch
from torch.utils.data import DataLoader

from support.mask_cases import IMAGE, conversation, new_encoder, picture, processor_of
from vlm_lora.batching.encoded import EncodedRow
from vlm_lora.batching.overflow import COARSE_SIDES, LEAST_SIDE, exchanges, scaled
from vlm_lora.data.conversation import Conversation, Role
from vlm_lora.errors import RenderingError, TooLongError

TALK: Sequence[tuple[Role, Sequence[str]]] = (
    ("system", ("Be short.",)),
    ("user", (IMAGE, "What is it?")),
    ("assistant", ("a red bus",)),
    ("user", ("And", IMAGE)),
    ("assistant", ("a green one",)),
    ("user", ("Which is larger?",)),
    ("assistant", ("the red one",)),
)


def tokens(family: str, row: Conversation) -> int:
    return len(new_encoder(family).encode(row).input_ids)


def same(one: EncodedRow, other: EncodedRow) -> bool:
    tensors = ({**row.token_tensors, **row.media, "ids": row.input_ids, "labels": row.labels} for row in (one, other))
    left, right = tensors
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("policy", ["error", "drop", "shrink_images", "trim_turns"])
def test_a_row_that_fits_is_the_same_under_every_policy(policy: str) -> None:
    row = conversation(TALK)
    limit = tokens("qwen2_5_vl", row)
    encoded = new_encoder("qwen2_5_vl", max_length=limit, on_overflow=policy).encode(row)
    assert same(encoded, new_encoder("qwen2_5_vl").encode(row))
    assert encoded.overflow == ""


@pytest.mark.parametrize("kept", [1, 2])
def test_the_oldest_exchanges_go_with_their_images_and_the_system_turn_stays(kept: int) -> None:
    row = conversation(TALK)
    trimmed = conversation(TALK)
    trimmed = Conversation(turns=(row.turns[0], *row.turns[-2 * kept :]), source=trimmed.source)
    expected = new_encoder("qwen2_5_vl").encode(trimmed)
    encoder = new_encoder("qwen2_5_vl", max_length=len(expected.input_ids), on_overflow="trim_turns")
    encoded = encoder.encode(row)
    assert same(encoded, expected)
    assert not same(encoded, new_encoder("qwen2_5_vl").encode(row))
    pictures = "1 image" if kept == 2 else "2 images"
    assert encoded.overflow == f"Its first {6 - 2 * kept} turns with {pictures} are left out"


def test_the_last_question_and_its_answer_are_never_left_out() -> None:
    row = conversation(TALK)
    alone = Conversation(turns=(row.turns[0], *row.turns[-2:]), source=row.source)
    least = tokens("qwen2_5_vl", alone)
    with pytest.raises(
        TooLongError, match=rf"row 3: .*trim_turns cannot help: the last question and its answer alone take {least}\."
    ):
        new_encoder("qwen2_5_vl", max_length=least - 1, on_overflow="trim_turns").encode(row)
    single = conversation((("user", (IMAGE, "What?")), ("assistant", ("a bus",))))
    with pytest.raises(TooLongError, match="only one question with its answer"):
        new_encoder("qwen2_5_vl", max_length=3, on_overflow="trim_turns").encode(single)


def test_an_exchange_is_all_that_the_user_says_and_all_the_answers_to_it() -> None:
    roles: Sequence[Role] = ("system", "assistant", "user", "user", "assistant", "system", "user", "assistant", "user")
    turns = conversation([(role, ("x",)) for role in roles]).turns
    assert exchanges(turns) == [[1], [2, 3, 4], [6, 7], [8]]


def test_images_shrink_no_more_than_they_must() -> None:
    row = conversation((("user", (IMAGE, "What is it?")), ("assistant", ("a red bus",))), image=picture(size=(64, 64)))
    limit = tokens("qwen2_5_vl", row) - 1
    encoded = new_encoder("qwen2_5_vl", max_length=limit, on_overflow="shrink_images").encode(row, keep_images=True)
    assert len(encoded.input_ids) <= limit
    (shown,) = encoded.pictures
    assert LEAST_SIDE <= min(shown.size) < 64
    assert encoded.overflow.startswith("Its images are at ")
    smaller = conversation(
        (("user", (IMAGE, "What is it?")), ("assistant", ("a red bus",))), image=picture(size=scaled((64, 64), 0.92))
    )
    assert tokens("qwen2_5_vl", smaller) > limit or shown.size >= (58, 58)


@pytest.mark.parametrize("family", ["gemma3", "llava"])
def test_shrinking_where_every_image_takes_the_same_tokens_is_an_error_that_says_so(family: str) -> None:
    row = conversation((("user", (IMAGE, "What?")), ("assistant", ("a bus",))), image=picture(size=(300, 200)))
    limit = tokens(family, row) - 1
    with pytest.raises(TooLongError, match=r"row 3: .*take as many tokens at 12% of their sides .* as they do now"):
        new_encoder(family, max_length=limit, on_overflow="shrink_images").encode(row)


def test_shrinking_without_an_image_is_an_error_that_says_so() -> None:
    row = conversation((("user", ("What?",)), ("assistant", ("a bus",))))
    with pytest.raises(TooLongError, match="the row has no image"):
        new_encoder("qwen2_5_vl", max_length=3, on_overflow="shrink_images").encode(row)


def test_a_row_that_is_dropped_is_none_or_an_error_and_another_fault_stays_one() -> None:
    row = conversation(TALK)
    encoder = new_encoder("qwen2_5_vl", max_length=10, on_overflow="drop")
    assert encoder.encode_kept(row) is None
    with pytest.raises(TooLongError, match="row 3"):
        encoder.encode(row)
    with pytest.raises(TooLongError, match="row 3"):
        new_encoder("qwen2_5_vl", max_length=10).encode_kept(row)
    unanswered = conversation((("user", ("Hi",)),))
    with pytest.raises(RenderingError, match="no token is supervised"):
        new_encoder("qwen2_5_vl", on_overflow="drop").encode_kept(unanswered)


def test_prompts_are_made_to_fit_too() -> None:
    row = conversation(TALK)
    alone = Conversation(turns=(row.turns[0], *row.turns[-2:]), source=row.source)
    expected = new_encoder("qwen2_5_vl").encode_prompt(alone)
    encoder = new_encoder("qwen2_5_vl", max_length=len(expected.input_ids), on_overflow="trim_turns")
    assert same(encoder.encode_prompt(row), expected)


def test_an_image_is_decoded_once_however_often_a_row_is_tried() -> None:
    row = conversation(TALK, image=picture(size=(64, 64)))
    opened: list[object] = []

    def counting(source: object, *, limits: object) -> object:
        opened.append(source)
        return source

    limit = tokens("qwen2_5_vl", row) - 4
    encoder = new_encoder("qwen2_5_vl", max_length=limit, on_overflow="shrink_images", load_image=counting)
    assert encoder.encode(row).overflow
    assert len(opened) == 2


def test_on_a_canvas_images_shrink_in_coarse_steps() -> None:
    row = conversation(
        (("user", (IMAGE, "What is it?")), ("assistant", ("a red bus",))), image=picture(size=(150, 140))
    )
    limit = tokens("qwen2_5_vl", row) - 1
    encoder = new_encoder("qwen2_5_vl", max_length=limit, on_overflow="shrink_images")
    sides = [max(encoder.encode(row, keep_images=True).pictures[0].size)]
    for canvases in ([(140, 140)], [(140, 140), (500, 500)]):
        (shown,) = encoder.with_canvases(canvases).encode(row, keep_images=True).pictures
        assert shown.size in {scaled((140, 140), side) for side in COARSE_SIDES}
        sides.append(max(shown.size))
    assert sides[1] == sides[2] < 140
    assert sides[0] not in sides[1:], "the control: without a canvas the step is finer"


class Failing(torch.utils.data.Dataset[None]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        raise TooLongError("row 1: too long", tokens=5, limit=4)


def test_the_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(TooLongError("x", tokens=5, limit=4)))
    assert (str(error), error.tokens, error.limit) == ("x", 5, 4)
    with pytest.raises(TooLongError, match="row 1: too long"):
        list(DataLoader(Failing(), num_workers=1))


def test_the_processor_of_these_tests_counts_pixels() -> None:
    """Else shrinking would be tested on a family where it changes nothing."""
    counts = {size: tokens("qwen2_5_vl", conversation(TALK, image=picture(size=size))) for size in ((64, 64), (32, 32))}
    assert counts[64, 64] > counts[32, 32]
    assert processor_of("qwen2_5_vl").image_processor.merge_size == 2
