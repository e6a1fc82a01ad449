"""Whatever people type: control tokens are the template's own, the text survives, the labels hold."""

from __future__ import annotations

import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, pre_tokenizers

from support.mask_cases import IMAGE, conversation, direct_ids, encoder_of, new_encoder, processor_of
from support.tiny.processors import build_processor
from vlm_lora.batching.encoded import IGNORE_INDEX
from vlm_lora.batching.masks import supervised_text
from vlm_lora.errors import RenderingError

FAMILIES = ("qwen2_5_vl", "gemma3", "llava", "mllama", "idefics3")
ORDINARY = st.text(
    st.one_of(
        st.sampled_from(" \n\t\r<>|/_[]:x'é😀😀中ß\u0301\u200d\u00a0"),
        st.characters(codec="utf-8"),
        st.sampled_from("\U000f0000\U000f0001\U000f8000\U000f8001\ue000"),
    ),
    max_size=12,
)


def controls(family: str) -> list[str]:
    tokens = processor_of(family).tokenizer.added_tokens_decoder.values()
    return [token.content for token in tokens if token.special and token.content != "<unk>"]


def typed(family: str) -> st.SearchStrategy[str]:
    pieces = st.one_of(ORDINARY, st.sampled_from(controls(family)), st.just("ASSISTANT: "), st.just("<|im_"))
    return st.lists(pieces, max_size=4).map("".join)


def control_counts(family: str, ids: list[int]) -> Counter[str]:
    tokenizer = processor_of(family).tokenizer
    names = set(controls(family))
    return Counter(name for name in tokenizer.convert_ids_to_tokens(ids) if name in names)


@pytest.mark.parametrize("family", FAMILIES)
def test_any_text_keeps_the_label_promise(family: str) -> None:
    tokenizer = processor_of(family).tokenizer
    plain = conversation((("user", (IMAGE, "q")), ("assistant", ("a",)), ("user", ("r",)), ("assistant", ("b",))))
    expected = control_counts(family, encoder_of(family).encode(plain).input_ids.tolist())
    ends = {"llava": "</s>", "gemma3": "<end_of_turn>", "qwen2_5_vl": "<|im_end|>", "mllama": "<|eot_id|>"}
    end = ends.get(family, "<end_of_utterance>")

    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(typed(family), typed(family), typed(family), typed(family))
    def holds(question: str, answer: str, again: str, last: str) -> None:
        row = encoder_of(family).encode(
            conversation(
                (
                    ("user", (IMAGE, question)),
                    ("assistant", (answer,)),
                    ("user", (again,)),
                    ("assistant", (last,)),
                )
            )
        )
        ids = row.input_ids.tolist()
        assert control_counts(family, ids) == expected
        for text in (question, answer, again, last):
            assert (text.strip() if family == "gemma3" else text) in row.text
        if family != "llava":  # its tokenizer adds spaces behind control tokens
            bos = tokenizer.bos_token or ""
            decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            assert decoded in (unicodedata.normalize("NFC", row.text), row.text, bos + row.text)
        runs = supervised_text(row, tokenizer)
        assert len(runs) == 2
        assert runs[1].endswith(end)
        assert int(row.labels.ne(IGNORE_INDEX).sum()) >= 2

    holds()


@pytest.mark.parametrize("family", FAMILIES)
def test_text_without_control_strings_gives_the_processors_own_ids(family: str) -> None:
    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(ORDINARY, ORDINARY)
    def holds(question: str, answer: str) -> None:
        row = conversation((("user", (IMAGE, question)), ("assistant", (answer,))))
        assert encoder_of(family).encode(row).input_ids.tolist() == direct_ids(family, row)

    holds()


def test_a_tokenizer_that_cannot_keep_typed_control_strings_as_text_refuses_those_rows_only() -> None:
    """With Metaspace's prepend_scheme "first", a stretch starts otherwise alone than inside the whole."""
    processor = build_processor("llava_next")
    backend = processor.tokenizer.backend_tokenizer
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    encoder = new_encoder("llava_next", processor)

    row = encoder.encode(conversation((("user", (IMAGE, "Plain")), ("assistant", ("text",)))))
    assert row.text == "[INST] " + "<image>" * 36 + "\nPlain [/INST] text</s> "
    with pytest.raises(RenderingError, match=r"rows\.jsonl row 3: the text contains '</s>', a control token"):
        encoder.encode(conversation((("user", (IMAGE, "Say </s>")), ("assistant", ("text",)))))


def test_control_tokens_that_swallow_white_space_do_so_in_rows_with_typed_ones() -> None:
    processor = build_processor("qwen2_5_vl")
    tokenizer = processor.tokenizer
    swallowing = [AddedToken("<|note|>", special=True, rstrip=True), AddedToken("<|tail|>", special=True, lstrip=True)]
    tokenizer.add_special_tokens({"additional_special_tokens": swallowing})
    processor.chat_template = processor.chat_template.replace(
        "<|im_start|>{{ message['role'] }}\n", "<|im_start|>{{ message['role'] }} <|tail|><|note|>\n"
    ).replace("<|im_start|>assistant\n", "<|im_start|>assistant <|tail|><|note|>\n")
    encoder = new_encoder("qwen2_5_vl", processor)

    plain, typed = (
        encoder.encode(conversation((("user", (IMAGE, "q")), ("assistant", (answer,))))) for answer in ("a", "<|note|>")
    )
    names = tokenizer.convert_ids_to_tokens(typed.input_ids.tolist())
    assert names.count("<|note|>") == 2  # in the headers of user and assistant
    assert supervised_text(plain, tokenizer) == ["a<|im_end|>"]
    assert supervised_text(typed, tokenizer) == ["<|note|><|im_end|>"]
    header = plain.labels.ne(IGNORE_INDEX).int().argmax()
    assert typed.input_ids[:header].tolist() == plain.input_ids[:header].tolist()
