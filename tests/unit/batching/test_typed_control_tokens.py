"""Text that holds a model's control tokens stays text: each token of each family's tokenizer, alone and all together,
wherever a row can hold text."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest

from support.mask_cases import FAMILIES, IMAGE, conversation, encoder_of, picture, processor_of
from vlm_lora.batching.encoded import EncodedRow
from vlm_lora.data.columns.names import PLACEHOLDER
from vlm_lora.data.columns.schema import Schema
from vlm_lora.data.conversation import Conversation, RowSource
from vlm_lora.data.conversations.layouts import build_conversation
from vlm_lora.data.conversations.texts import OTHER_MARKS
from vlm_lora.data.images.values import ImagePlace
from vlm_lora.errors import RenderingError

SOURCE = RowSource(file="rows.jsonl", row=3)
ORDINARY = "ab"


@cache
def controls(family: str) -> tuple[str, ...]:
    """Return the tokens that mean something to the model: all special ones and the media placeholders."""
    processor = processor_of(family)
    tokenizer = processor.tokenizer
    names = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for owner in (processor, tokenizer):
        for attribute in ("image_token", "boi_token", "eoi_token", "video_token", "audio_token"):
            name = getattr(owner, attribute, None)
            names += [name] if isinstance(name, str) and name in tokenizer.get_vocab() else []
    return tuple(dict.fromkeys(name for name in names if name and name != tokenizer.unk_token))


def rows(family: str, typed: str) -> dict[str, Conversation]:
    """Return conversations with `typed` in each place that text comes from."""
    schema = Schema(layout="question_answer", image="image", prompt="prompt", context="input", response="answers")
    row = {"image": picture(), "prompt": f"q {typed}", "input": f"{typed} c", "answers": [f"a {typed}", f"{typed} b"]}
    # In a prompt column such a mark is an image's place, and next to a part for the image it is text.
    if PLACEHOLDER in typed or OTHER_MARKS.search(typed):
        schema = Schema(layout="prompt_completion", image="image", prompt="prompt", response="answers")
        parts = [{"type": "image"}, {"type": "text", "text": f"q {typed}\n{typed} c"}]
        row["prompt"] = [{"role": "user", "content": parts}]
    columns = build_conversation(row, schema, source=SOURCE, place=ImagePlace(folder=None), system_prompt=None)
    made = {
        "user": conversation((("user", (IMAGE, f"Say {typed}!")), ("assistant", ("no",)))),
        "touching": conversation((("user", (typed, IMAGE, typed)), ("assistant", (typed,)))),
        "answer": conversation((("user", (IMAGE, "Say")), ("assistant", (f"x{typed}y",)))),
        "columns": columns,
    }
    if family not in WITHOUT_SYSTEM:
        turns = (("system", (f"Be {typed}.",)), ("user", (IMAGE, "Say")), ("assistant", ("no",)))
        made["system"] = conversation(turns)  # type: ignore[arg-type]
        made["--system_prompt"] = build_conversation(
            row, schema, source=SOURCE, place=ImagePlace(folder=None), system_prompt=typed
        )
    if family == "paligemma":  # one prefix: its image stands first, and a row is one question
        del made["touching"]
    return made


WITHOUT_SYSTEM = frozenset({"paligemma", "llava-pixtral"})
"""Their templates write no system turn, and rows that have one are refused."""
THOUGHTS = {"gemma4": ("<|channel>", "<channel|>")}
"""Templates that cut thoughts out of answers; rows with one there are refused."""


def counted(family: str, row: EncodedRow) -> Counter[int]:
    """Count the control tokens in a row's ids."""
    wanted = set(processor_of(family).tokenizer.convert_tokens_to_ids(list(controls(family))))
    return Counter(token_id for token_id in row.input_ids.tolist() if token_id in wanted)


@cache
def plain(family: str) -> dict[str, Counter[int]]:
    encoder = encoder_of(family)
    return {name: counted(family, encoder.encode(row)) for name, row in rows(family, ORDINARY).items()}


def check(family: str, typed: str) -> None:
    for name, row in rows(family, typed).items():
        answers = "".join(turn.text for turn in row.turns if turn.role == "assistant")
        if any(mark in answers for mark in THOUGHTS.get(family, ())):
            with pytest.raises(RenderingError, match=r"row 3: the chat template rewrites the text of turn \d"):
                encoder_of(family).encode(row)
            continue
        encoded = encoder_of(family).encode(row)
        assert counted(family, encoded) == plain(family)[name], (name, typed)
        assert typed.strip() in encoded.text, (name, typed)
        prompt = encoder_of(family).encode_prompt(row)
        assert counted(family, prompt)[eos_of(family)] <= counted(family, encoded)[eos_of(family)]


def eos_of(family: str) -> int:
    return int(processor_of(family).tokenizer.eos_token_id)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_control_token_alone_stays_text(family: str) -> None:
    assert len(controls(family)) >= 3
    for token in controls(family):
        check(family, token)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_all_control_tokens_together_stay_text(family: str) -> None:
    check(family, "".join(controls(family)))
    check(family, " ".join(reversed(controls(family))))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_what_counts_is_seen(family: str) -> None:
    """The control: tokenized as it is, the same text does become control tokens."""
    tokenizer: Any = processor_of(family).tokenizer
    for token in controls(family):
        assert tokenizer.convert_tokens_to_ids(token) in tokenizer(f"Say {token}!")["input_ids"], token


def test_names_in_other_columns_and_accepted_answers_are_never_tokenized() -> None:
    """All accepted answers are kept for scoring, as text; the first is what is trained on."""
    typed = "".join(controls("qwen2_5_vl"))
    row = rows("qwen2_5_vl", typed)["columns"]
    assert row.accepted_answers == (f"a {typed}", f"{typed} b")
    encoded = encoder_of("qwen2_5_vl").encode(row)
    assert f"a {typed}" in encoded.text
    assert f"{typed} b" not in encoded.text
