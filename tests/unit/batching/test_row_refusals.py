"""Rows that cannot keep the label promise: one message with the row, what is wrong, and what to do."""

from __future__ import annotations

import logging

import pytest
import torch

from support.mask_cases import (
    CASES,
    IMAGE,
    SINGLE,
    case_of,
    conversation,
    encoder_of,
    new_encoder,
    processor_of,
    trl_template,
)
from support.tiny.processors import build_processor
from vlm_lora.batching.masks import Span, check_mask, supervise
from vlm_lora.errors import ImageError, ModelError, RenderingError

TEMPLATE = processor_of("qwen2_5_vl").chat_template


def with_template(template: str) -> object:
    processor = build_processor("qwen2_5_vl")
    processor.chat_template = template
    return processor


def test_the_templates_own_words_reach_the_user() -> None:
    row = conversation((*SINGLE, ("assistant", ("again",))))
    with pytest.raises(RenderingError, match=r"^rows\.jsonl row 3: .*Conversation roles must alternate"):
        encoder_of("gemma3").encode(row)


def test_a_system_turn_that_the_template_does_not_know_is_refused() -> None:
    refusing = TEMPLATE.replace(
        "{% for message in messages %}",
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}",
        1,
    )
    with pytest.raises(RenderingError, match="System role not supported"):
        new_encoder("qwen2_5_vl", with_template(refusing)).encode(conversation(CASES["system"]))


def test_a_template_that_drops_a_turn_is_named() -> None:
    dropping = "{% for m in messages if m['role'] != 'system' %}{% for c in m['content'] %}" + (
        "{{ '<|image_pad|>' if c['type'] == 'image' else c['text'] }}{% endfor %}<|im_end|>{% endfor %}"
    )
    with pytest.raises(RenderingError, match=r"leaves out the text of turn 0 \(system\)"):
        new_encoder("qwen2_5_vl", with_template(dropping)).encode(conversation(CASES["system"]))


def test_a_template_that_drops_the_image_is_refused() -> None:
    dropping = TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "")
    with pytest.raises(RenderingError, match="the row has 1 image, the chat template writes 0 placeholders"):
        new_encoder("qwen2_5_vl", with_template(dropping)).encode(case_of("qwen2_5_vl", "single"))


REASONING = TEMPLATE.replace("{{ content['text'] }}", "{{ content['text'].split('</think>')[-1] | trim }}")
"""Like the templates of reasoning models, which write an answer without its thoughts."""


def test_reasoning_that_the_template_drops_is_refused_in_the_last_answer_and_left_out_before() -> None:
    encoder = new_encoder("qwen2_5_vl", with_template(REASONING))
    plain = [("user", (IMAGE, "a?")), ("assistant", ("bus",)), ("user", ("c?",)), ("assistant", ("d",))]
    wanted = encoder.encode(conversation(plain))  # type: ignore[arg-type]
    thought = ("assistant", ("<think>\nIt is red.\n</think>\n\nbus",))
    row = encoder.encode(conversation([plain[0], thought, *plain[2:]]))  # type: ignore[list-item]
    assert row.input_ids.equal(wanted.input_ids)
    assert row.labels.equal(wanted.labels)
    with pytest.raises(RenderingError, match=r"row 3: the chat template leaves out the thoughts .* of turn 3"):
        encoder.encode(conversation([*plain[:3], thought]))  # type: ignore[list-item]


def test_a_text_that_a_template_rewrites_is_refused() -> None:
    rewriting = TEMPLATE.replace("{{ content['text'] }}", "{{ content['text'].replace('bus', 'car') }}")
    turns = [("user", ("a?",)), ("assistant", ("b",)), ("user", ("c?",)), ("assistant", ("A bus.",))]
    with pytest.raises(RenderingError, match=r"rewrites the text of turn 3 \(assistant\)"):
        new_encoder("qwen2_5_vl", with_template(rewriting)).encode(conversation(turns))  # type: ignore[arg-type]


def test_a_prompt_that_contradicts_the_finished_turn_is_refused() -> None:
    contradicting = TEMPLATE.replace("{% if add_generation_prompt %}<|im_start|>assistant", "{% if "
                                     "add_generation_prompt %}<|im_start|>model")  # fmt: skip
    with pytest.raises(RenderingError, match="what the model must produce is not defined"):
        new_encoder("qwen2_5_vl", with_template(contradicting)).encode(case_of("qwen2_5_vl", "single"))


def test_an_image_in_an_answer_is_refused() -> None:
    row = conversation((("user", ("Draw",)), ("assistant", (IMAGE, "there"))))
    with pytest.raises(RenderingError, match="an assistant turn holds an image"):
        encoder_of("qwen2_5_vl").encode(row)


def test_a_row_without_an_answer_is_refused() -> None:
    with pytest.raises(RenderingError, match="no token is supervised"):
        encoder_of("qwen2_5_vl").encode(conversation((("user", (IMAGE, "What?")),)))


def test_a_row_over_the_limit_says_its_length_and_the_limit() -> None:
    row = case_of("qwen2_5_vl", "single")
    length = len(encoder_of("qwen2_5_vl").encode(row).input_ids)
    assert len(new_encoder("qwen2_5_vl", max_length=length).encode(row).input_ids) == length
    with pytest.raises(RenderingError, match=rf"row 3: {length} tokens .* limit of {length - 1}.*--max_length"):
        new_encoder("qwen2_5_vl", max_length=length - 1).encode(row)


def test_an_image_that_cannot_be_read_names_the_row() -> None:
    def broken(source: object, *, limits: object) -> object:
        raise ImageError("image.png is no image")

    with pytest.raises(ImageError, match=r"rows\.jsonl row 3: image\.png is no image"):
        new_encoder("qwen2_5_vl", load_image=broken).encode(case_of("qwen2_5_vl", "single"))


def test_a_model_without_template_or_eos_is_refused() -> None:
    processor = build_processor("qwen2_5_vl")
    processor.chat_template = None
    with pytest.raises(ModelError, match=r"no chat template.*chat_template\.jinja"):
        new_encoder("qwen2_5_vl", processor)
    with pytest.raises(ModelError, match="No eos token"):
        new_encoder("qwen2_5_vl", eos_token_ids=frozenset())


def test_an_appended_eos_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    encoder = new_encoder("llava")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            encoder.encode(case_of("llava", "single"))
    assert [record.getMessage() for record in caplog.records] == [
        "The chat template ends no answer with an eos token: '</s>' is appended after the last answer, or the "
        "model would never learn to stop."
    ]


def test_a_terminator_that_does_not_stop_generation_is_followed_by_an_eos() -> None:
    """Without <end_of_turn> among the eos ids, the model must go on until <eos>."""
    processor = processor_of("gemma3")
    eos = processor.tokenizer.eos_token_id
    row = new_encoder("gemma3", eos_token_ids=frozenset({eos})).encode(case_of("gemma3", "single"))
    assert row.text.endswith("model\na red bus<end_of_turn><eos>")
    assert row.labels.tolist()[-2:] == processor.tokenizer.convert_tokens_to_ids(["<end_of_turn>", "<eos>"])


def test_string_templates_are_found_out() -> None:
    encoder = new_encoder("phi4_multimodal", with_string_template())
    row = encoder.encode(case_of("phi4_multimodal", "text"))
    assert row.text == "<|user|>\nHi<|end|>\n<|assistant|>\nYo<|end|>\n<|endoftext|>"


def test_a_template_that_takes_parts_of_users_alone_gets_its_answers_as_strings() -> None:
    """Like GLM-4.1V's, which writes a list as Python does; so do some with their system turns."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'user' %}"
        "{% for c in m['content'] %}{{ '<|image_pad|>' if c['type'] == 'image' else c['text'] }}{% endfor %}"
        "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    row = new_encoder("qwen2_5_vl", with_template(template)).encode(conversation(CASES["system"]))
    assert row.text.startswith("<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nLook ")
    assert row.text.endswith("<|im_start|>assistant\nyes<|im_end|>\n")


def with_string_template() -> object:
    processor = build_processor("phi4_multimodal")
    processor.chat_template = trl_template("phi3_5")
    return processor


# The checker itself, on "USER a</s>" with one token per character and the answer " a</s>".
TEXT = "USER a!"
OFFSETS = torch.tensor([[i, i + 1] for i in range(len(TEXT))])
IDS = torch.tensor([10, 11, 12, 13, 14, 15, 2])
SPANS = [Span(start=4, end=7, ended=True)]


def check(mask: torch.Tensor, ids: torch.Tensor = IDS, media: frozenset[int] = frozenset({99})) -> None:
    check_mask(
        input_ids=ids,
        mask=mask,
        offsets=OFFSETS,
        spans=SPANS,
        text=TEXT,
        eos_token_ids=frozenset({2}),
        media_token_ids=media,
    )


def test_the_right_mask_passes() -> None:
    mask = supervise(OFFSETS, SPANS)
    assert mask.tolist() == [False] * 4 + [True] * 3
    check(mask)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ([0, 0, 0, 0, 0, 0, 0], "no token is supervised"),
        ([0, 0, 0, 1, 1, 1, 0], "the supervised tokens stand for 'R a'"),
        ([0, 0, 0, 0, 1, 1, 0], "the supervised tokens stand for ' a'"),
        ([1, 1, 1, 1, 1, 1, 1], "the supervised tokens stand for 'USER a!'"),
        ([1, 0, 0, 0, 1, 1, 1], "2 supervised stretches for 1 assistant turns"),
        ([0, 0, 0, 0, 1, 0, 1], "2 supervised stretches for 1 assistant turns"),
    ],
    ids=["none", "shifted", "no terminator", "prompt", "prompt token", "hole"],
)
def test_a_wrong_mask_is_refused(mask: list[int], words: str) -> None:
    with pytest.raises(RenderingError, match=words):
        check(torch.tensor(mask, dtype=torch.bool))


def test_a_media_token_or_a_missing_eos_is_refused() -> None:
    mask = supervise(OFFSETS, SPANS)
    with pytest.raises(RenderingError, match="a media token is supervised"):
        check(mask, media=frozenset({15}))
    with pytest.raises(RenderingError, match="does not end with an eos token"):
        check(mask, ids=torch.tensor([10, 11, 12, 13, 14, 15, 16]))


def test_a_token_across_header_space_and_answer_is_supervised_and_one_across_a_header_word_is_refused() -> None:
    offsets = torch.tensor([[0, 4], [4, 6], [6, 7]])
    spans = [Span(start=5, end=7, ended=True)]
    mask = supervise(offsets, spans)
    assert mask.tolist() == [False, True, True]
    ids = torch.tensor([10, 14, 2])
    settings = {"eos_token_ids": frozenset({2}), "media_token_ids": frozenset[int]()}
    check_mask(input_ids=ids, mask=mask, offsets=offsets, spans=spans, text=TEXT, **settings)
    with pytest.raises(RenderingError, match="the supervised tokens stand for 'Ra!'"):
        check_mask(input_ids=ids, mask=mask, offsets=offsets, spans=spans, text="USERRa!"[:4] + "Ra!", **settings)
