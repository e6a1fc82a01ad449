"""Answers that a row marks as only read: context without labels, never what an evaluation asks for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.mask_cases import (
    as_decoded,
    case_of,
    conversation,
    direct_ids,
    encoder_of,
    golden,
    marked,
    new_encoder,
    processor_of,
)
from vlm_lora.batching.encoded import IGNORE_INDEX
from vlm_lora.batching.masks import supervised_text
from vlm_lora.data.conversation import Conversation
from vlm_lora.errors import RenderingError
from vlm_lora.evaluation.generation import accepted_answers

FAMILIES = ("qwen2_5_vl", "smolvlm", "llava")
"""Three ways of writing a turn: with a line break behind its end, with a space before its text, and without an end."""

FIRST, LAST = (False, True), (True, False)

BY_HAND = {
    ("qwen2_5_vl", FIRST): "assistant\na red bus<|im_end|>\n<|im_start|>user\nRepeat: a red bus<|im_end|>\n"
    "<|im_start|>assistant\n⟦Repeat: a red bus<|im_end|>⟧\n",
    ("qwen2_5_vl", LAST): "assistant\n⟦a red bus<|im_end|>⟧\n<|im_start|>user\nRepeat: a red bus<|im_end|>\n"
    "<|im_start|>assistant\nRepeat: a red bus<|im_end|>\n",
    ("smolvlm", FIRST): "Assistant: a red bus<end_of_utterance>\nUser: Repeat: a red bus<end_of_utterance>\n"
    "Assistant:⟦ Repeat: a red bus<end_of_utterance>⟧\n",
    ("smolvlm", LAST): "Assistant:⟦ a red bus<end_of_utterance>⟧\nUser: Repeat: a red bus<end_of_utterance>\n"
    "Assistant: Repeat: a red bus<end_of_utterance>\n",
    ("llava", FIRST): "ASSISTANT: a red bus USER: Repeat: a red bus ASSISTANT:⟦ Repeat: a red bus</s>⟧",
    ("llava", LAST): "ASSISTANT:⟦ a red bus⟧ USER: Repeat: a red bus ASSISTANT: Repeat: a red bus ",
}
"""How each rendering ends; what is before says nothing of answers."""


def only(row: Conversation, trained_on: tuple[bool, ...]) -> Conversation:
    """Return a row of questions and answers of which only some answers are trained on."""
    marks = iter(trained_on)
    return replace(
        row, turns=tuple(replace(t, supervised=next(marks)) if t.role == "assistant" else t for t in row.turns)
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("trained_on", [FIRST, LAST])
def test_only_marked_answers_are_supervised(family: str, trained_on: tuple[bool, bool]) -> None:
    tokenizer = processor_of(family).tokenizer
    both = encoder_of(family).encode(case_of(family, "turns"))
    row = encoder_of(family).encode(only(case_of(family, "turns"), trained_on))

    assert marked(row, tokenizer).endswith(as_decoded(BY_HAND[family, trained_on], tokenizer))
    assert marked(row, tokenizer).count("⟦") == 1
    assert row.labels[row.labels.ne(IGNORE_INDEX)].tolist() == row.input_ids[row.labels.ne(IGNORE_INDEX)].tolist()
    assert marked(row, tokenizer) != as_decoded(golden(family)["turns"], tokenizer), "the control: both supervised"
    assert int(both.labels.ne(IGNORE_INDEX).sum()) > int(row.labels.ne(IGNORE_INDEX).sum())


def test_the_rendering_is_the_same_whatever_is_trained_on() -> None:
    for family, trained_on in (("qwen2_5_vl", FIRST), ("smolvlm", LAST)):
        row = only(case_of(family, "turns"), trained_on)
        assert encoder_of(family).encode(row).input_ids.tolist() == direct_ids(family, row)


def test_shapes_of_rows_that_differ_in_marks_alone_are_kept_apart() -> None:
    encoder = new_encoder("qwen2_5_vl")
    tokenizer = processor_of("qwen2_5_vl").tokenizer
    told = [
        supervised_text(encoder.encode(only(case_of("qwen2_5_vl", "turns"), marks)), tokenizer)
        for marks in ((True, True), FIRST, LAST, (True, True))
    ]
    first, last = "a red bus<|im_end|>", "Repeat: a red bus<|im_end|>"
    assert told == [[first, last], [last], [first], [first, last]]


def test_an_evaluation_asks_for_the_last_answer_that_is_trained_on() -> None:
    row = case_of("qwen2_5_vl", "turns")
    tokenizer = processor_of("qwen2_5_vl").tokenizer
    for marks, text, said in ((LAST, "a red bus", "What is it?"), (FIRST, "Repeat: a red bus", "Repeat: a red bus")):
        assert accepted_answers(only(row, marks)) == (text,)
        prompt = tokenizer.decode(encoder_of("qwen2_5_vl").encode_prompt(only(row, marks)).input_ids)
        assert prompt.endswith(f"{said}<|im_end|>\n<|im_start|>assistant\n")
    assert accepted_answers(replace(only(row, LAST), accepted_answers=("x", "y"))) == ("x", "y")


def test_trimmed_turns_keep_the_last_answer_that_is_trained_on() -> None:
    turns = [turn for n in range(4) for turn in (("user", (f"question {n} " * 8,)), ("assistant", (f"answer {n}",)))]
    row = only(conversation(turns), (True, True, True, False))  # type: ignore[arg-type]
    alone = replace(row, turns=row.turns[4:])
    length = len(encoder_of("qwen2_5_vl").encode(alone).input_ids)
    encoder = new_encoder("qwen2_5_vl", max_length=length)
    with pytest.raises(RenderingError):
        encoder.encode(row)
    trimming = new_encoder("qwen2_5_vl", max_length=length, on_overflow="trim_turns")
    found = supervised_text(trimming.encode(row), processor_of("qwen2_5_vl").tokenizer)
    assert found == ["answer 2<|im_end|>"], "what is behind it stays, as what is read"
    less = new_encoder("qwen2_5_vl", max_length=length - 1, on_overflow="trim_turns")
    with pytest.raises(RenderingError, match="the last question and its answer alone"):
        less.encode(row)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "paligemma"])
def test_a_row_without_any_answer_to_train_on_is_refused(family: str) -> None:
    with pytest.raises(RenderingError, match=r"rows\.jsonl row 3: no token is supervised"):
        encoder_of(family).encode(only(case_of(family, "single"), (False,)))
