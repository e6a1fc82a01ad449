"""Every family's template, every case: the tokens, and which of them are supervised, as written by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from support.mask_cases import (
    CASES,
    FAMILIES,
    as_decoded,
    case_of,
    control_names,
    direct_ids,
    encoder_of,
    golden,
    marked,
    processor_of,
    supervised_runs,
)
from vlm_lora.batching.encoded import IGNORE_INDEX, EncodedRow
from vlm_lora.batching.masks import supervised_text
from vlm_lora.errors import RenderingError

ALL = [(family, case) for family in FAMILIES for case in (*CASES, "typed")]
RENDERED = [(family, case) for family, case in ALL if not golden(family)[case].startswith("!!")]
REFUSED = [(family, case) for family, case in ALL if golden(family)[case].startswith("!!")]


def encode(family: str, case: str) -> EncodedRow:
    return encoder_of(family).encode(case_of(family, case))


@pytest.mark.parametrize(("family", "case"), RENDERED)
def test_rendering_and_supervised_tokens_are_as_written_by_hand(family: str, case: str) -> None:
    tokenizer = processor_of(family).tokenizer
    expected = golden(family)[case]

    row = encode(family, case)

    assert marked(row, tokenizer) == as_decoded(expected, tokenizer)
    special = set(tokenizer.all_special_ids) | {
        number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    found = [tokenizer.convert_ids_to_tokens(i) for i in row.input_ids.tolist() if i in special]
    assert found == control_names(expected, tokenizer)


@pytest.mark.parametrize(("family", "case"), REFUSED)
def test_a_row_that_cannot_be_labelled_is_refused_with_its_source(family: str, case: str) -> None:
    with pytest.raises(RenderingError) as caught:
        encode(family, case)
    assert str(caught.value).startswith("rows.jsonl row 3: ")
    assert golden(family)[case].removeprefix("!! ") in str(caught.value)


@pytest.mark.parametrize(("family", "case"), [pair for pair in RENDERED if pair[1] != "typed"])
def test_ids_equal_the_processors_own(family: str, case: str) -> None:
    assert encode(family, case).input_ids.tolist() == direct_ids(family, case_of(family, case))


@pytest.mark.parametrize("family", [f for f, case in RENDERED if case == "typed"])
def test_passing_a_typed_row_straight_to_the_processor_would_be_wrong(family: str) -> None:
    """The negative control of `typed`: without care, typed strings become control tokens."""
    row = case_of(family, "typed")
    mine = encode(family, "typed").input_ids.tolist()
    try:
        direct = direct_ids(family, row)
    except (ValueError, IndexError, StopIteration):
        return  # the processor counts the typed placeholder and refuses
    assert direct != mine


def test_every_family_is_refused_only_where_the_golden_file_says_so() -> None:
    assert REFUSED == [
        ("llava-pixtral", "system"),
        ("paligemma", "turns"),
        ("paligemma", "system"),
        ("paligemma", "text"),
    ]


def relabelled(row: EncodedRow, mask: torch.Tensor) -> EncodedRow:
    return replace(row, labels=torch.where(mask, row.input_ids, torch.tensor(IGNORE_INDEX)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("broken", ["shifted", "no terminator", "prompt", "image token"])
def test_a_broken_mask_does_not_pass_for_the_golden_one(family: str, broken: str) -> None:
    tokenizer = processor_of(family).tokenizer
    row = encode(family, "single")
    mask = row.labels.ne(IGNORE_INDEX)
    first, last = next((start, end) for start, end, supervised in supervised_runs(row) if supervised)
    if broken == "shifted":
        mask = mask.roll(1)
    elif broken == "no terminator":
        mask[last - 1] = False
    elif broken == "prompt":
        mask[first - 1] = True
    else:
        mask[mode_position(row)] = True

    assert marked(relabelled(row, mask), tokenizer) != as_decoded(golden(family)["single"], tokenizer)


def mode_position(row: EncodedRow) -> int:
    """Return where the commonest token of the prompt stands: an image token where images are expanded."""
    prompt = row.input_ids[: int(row.labels.ne(IGNORE_INDEX).nonzero()[0])]
    return int(prompt.eq(prompt.mode().values).nonzero()[0])


def test_supervised_text_shows_each_answer_with_its_terminator() -> None:
    row = encode("smolvlm", "turns")
    assert supervised_text(row, processor_of("smolvlm").tokenizer) == [
        " a red bus<end_of_utterance>",
        " Repeat: a red bus<end_of_utterance>",
    ]
