"""Masks on the templates of models that think, against the prompt as each template itself renders it.

Every template of trl's that speaks of thoughts, with each value of `enable_thinking` that it reads; answers with and
without thoughts, one and two turns. What the template renders as the prompt is never supervised; what follows it, up to
and including the first token that stops generation, is, and nothing else.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from support.mask_cases import picture, read_image, trl_template
from support.tiny.processors import build_processor
from vlm_lora.batching.encoded import IGNORE_INDEX, EncodedRow
from vlm_lora.batching.encoding import RowEncoder
from vlm_lora.batching.style import style_for
from vlm_lora.config.run_config import ModelConfig
from vlm_lora.data.conversation import Conversation, ImageRef, RowSource, Text, Turn
from vlm_lora.errors import ThinkingError
from vlm_lora.model.processor.thinking import reads_thinking, set_thinking

PROCESSOR = "qwen2_vl"
ENDS: Mapping[str, tuple[str, ...]] = {
    "deepseek": ("<｜end▁of▁sentence｜>",),
    "gemma4": ("<turn|>", "<|tool_response>"),
    "diffusion_gemma": ("<turn|>", "<|tool_response>"),
    "glm4moe": ("<|user|>", "<|endoftext|>", "<|observation|>"),
    "gptoss": ("<|return|>", "<|call|>"),
    "muse": ("<|eot|>",),
}
"""By beginning of a template's name: the tokens that stop generation, as its models' generation_config lists them."""


def thinking_templates() -> list[str]:
    import trl

    files = sorted((Path(str(trl.__file__)).parent / "chat_templates").glob("*.jinja"))
    spoken = {file.stem: re.sub(r"\{#.*?#\}", "", file.read_text(encoding="utf-8"), flags=re.DOTALL) for file in files}
    return [name for name, source in spoken.items() if re.search(r"think|reasoning", source)]


NAMES = thinking_templates()
SETTINGS = [(n, on) for n in NAMES for on in ((None, True, False) if reads_thinking(trl_template(n)) else (None,))]

Exchange = tuple[str, str, str]
"""A question, the thoughts on it, its answer."""
CASES: Mapping[str, Sequence[Exchange]] = {
    "plain": [("q?", "", "a.")],
    "thought": [("q?", "Hm,\nhm.", "a.")],
    "plain twice": [("q?", "", "a."), ("r?", "", "b.")],
    "thought twice": [("q?", "Hm.", "a."), ("r?", "Ho.", "b.")],
    "thought last": [("q?", "", "a."), ("r?", "Ho.", "b.")],
}


def ends_of(name: str) -> tuple[str, ...]:
    return next((ends for start, ends in ENDS.items() if name.startswith(start)), ("<|im_end|>",))


@cache
def processor() -> Any:
    made = copy.deepcopy(build_processor(PROCESSOR))
    made.tokenizer.add_tokens(sorted({end for ends in ENDS.values() for end in ends}), special_tokens=True)
    return made


@cache
def encoder_of(name: str, on: bool | None) -> RowEncoder:
    own = copy.copy(processor())
    own.chat_template = trl_template(name)
    own.tokenizer = copy.copy(own.tokenizer)
    set_thinking(own, ModelConfig(enable_thinking=on), trained=None)
    ids = frozenset(own.tokenizer.convert_tokens_to_ids(list(ends_of(name))))
    return RowEncoder(own, style_for(PROCESSOR), eos_token_ids=ids, max_length=None, load_image=read_image)


def row_of(exchanges: Sequence[Exchange], *, inline: bool = False) -> Conversation:
    turns = []
    for question, thought, answer in exchanges:
        text = f"<think>\n{thought}\n</think>\n\n{answer}" if inline and thought else answer
        turns.append(Turn(role="user", parts=(Text(text=question),)))
        turns.append(Turn(role="assistant", parts=(Text(text=text),), reasoning="" if inline else thought))
    return Conversation(turns=tuple(turns), source=RowSource(file="rows.jsonl", row=3))


def rendered(name: str, on: bool | None, exchanges: Sequence[Exchange], *, prompt: bool, inline: bool = False) -> str:
    """Render as a server would: the template itself, without anything of ours; a prompt lacks the last answer."""
    messages: list[dict[str, Any]] = []
    for question, thought, answer in exchanges:
        said: dict[str, Any] = {"role": "assistant", "content": answer}
        if thought and inline:
            said["content"] = f"<think>\n{thought}\n</think>\n\n{answer}"
        elif thought:
            said |= {"reasoning_content": thought, "thinking": thought}
        messages += [{"role": "user", "content": question}, said]
    given = {} if on is None else {"enable_thinking": on}
    template = trl_template(name)
    text: str = processor().tokenizer.apply_chat_template(
        messages[:-1] if prompt else messages,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=prompt,
        **given,
    )
    return text


def upto_end(name: str, text: str) -> str:
    """Cut a text behind the first token that stops generation."""
    return next(iter(re.findall(rf"\A.*?(?:{'|'.join(map(re.escape, ends_of(name)))})", text, re.DOTALL)), text)


def refused(name: str, on: bool | None, exchanges: Sequence[Exchange]) -> bool:
    """Tell by hand which rows cannot keep the promise."""
    thinks = any(thought for _, thought, _ in exchanges)
    if name.startswith(
        "deepseek"
    ):  # prompts with <think>, knows no key for thoughts, writes none for an answer without
        return True
    if name.startswith("gemma4") and name != "gemma4_v5":  # writes no thoughts of an answer that calls no tool
        return thinks
    # The prompt closes the block in which the last answer has thoughts.
    closed = on is False or (on is None and name.startswith("qwen3_5_nothink"))
    known = name.startswith(("qwen3", "glm4moe", "nemotron"))
    return bool(exchanges[-1][1]) and closed and known


EMPTY: Mapping[str, str] = {"nemotron_3_nano": "\n</think>\n", "nemotron_3_super": "\n</think>\n"}
"""What follows `<think>` in an answer without thoughts, of templates whose finished answer begins otherwise."""


def last_answer(name: str, on: bool | None, exchanges: Sequence[Exchange]) -> str:
    """Return what the model must produce behind the whole prompt."""
    prompt, finished = (rendered(name, on, exchanges, prompt=prompt) for prompt in (True, False))
    if not finished.startswith(prompt):
        assert name.startswith("nemotron"), "only these write an empty block otherwise than they prompt"
        empty = next((text for start, text in EMPTY.items() if name.startswith(start)), "</think>")
        return f"{empty}{exchanges[-1][2]}<|im_end|>"
    said = finished[len(prompt) :]
    return f"{said}<|user|>" if name == "glm4moe" else upto_end(name, said)


def first_answer(name: str, on: bool | None, exchanges: Sequence[Exchange]) -> str:
    """Return what is learnt of an answer that another question follows, as the template writes it then."""
    prompt, finished = rendered(name, on, exchanges[:1], prompt=True), rendered(name, on, exchanges, prompt=False)
    answer, question = exchanges[0][2], exchanges[1][0]
    written = finished[: finished.index(question)]
    start = len(prompt) if written.startswith(prompt) else written.rindex(answer)
    if name.startswith("gptoss"):  # its <|end|> there is not what stops generation
        return written[start : written.rindex(answer) + len(answer)]
    return upto_end(name, written[start:])


def check(name: str, on: bool | None, exchanges: Sequence[Exchange], row: EncodedRow) -> None:
    """Compare a row's labels, token by token, with what the template itself says."""
    tokenizer = processor().tokenizer
    prompt, said = rendered(name, on, exchanges, prompt=True), last_answer(name, on, exchanges)
    known, wanted = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, prompt + said))
    ids, labels = row.input_ids.tolist(), row.labels.tolist()
    assert row.text.startswith(prompt + said)
    assert ids[: len(wanted)] == wanted
    assert wanted[: len(known)] == known, "the prompt's tokens are those of inference"
    assert labels[len(known) :] == wanted[len(known) :] + [IGNORE_INDEX] * (len(ids) - len(wanted))
    before = [token for token in labels[: len(known)] if token != IGNORE_INDEX]
    earlier = first_answer(name, on, exchanges) if len(exchanges) > 1 else ""
    assert before == tokenizer(earlier, add_special_tokens=False)["input_ids"]
    if earlier:
        start = labels[: len(known)].index(before[0])
        assert labels[start : start + len(before)] == before, "in one stretch"
        assert tokenizer.decode(ids[:start]).endswith(prompt[: prompt.index(earlier)][-20:])


def test_all_kinds_of_templates_are_there() -> None:
    assert {"qwen3", "qwen3_5_think", "qwen3_6", "qwen3_8", "glm4moe", "deepseek_r1_distill", "gemma4_v5"} <= {*NAMES}
    assert {"gptoss", "lfm2_2_5_vl", "muse_glimmer", "nemotron_3_nano", "deepseekv3"} <= {*NAMES}
    assert not {"qwen2_5_vl", "qwen3_vl", "gemma3", "smolvlm", "llava_next"} & {*NAMES}, "the control"


@pytest.mark.parametrize(("name", "on"), SETTINGS)
def test_what_follows_the_prompt_is_supervised_and_nothing_else(name: str, on: bool | None) -> None:
    encoder = encoder_of(name, on)
    for case, exchanges in CASES.items():
        if refused(name, on, exchanges):
            with pytest.raises(ThinkingError, match=r"^rows\.jsonl row 3: "):
                encoder.encode(row_of(exchanges))
            continue
        row = encoder.encode(row_of(exchanges))
        check(name, on, exchanges, row)
        prompt = encoder.encode_prompt(row_of(exchanges))
        assert prompt.text == rendered(name, on, exchanges, prompt=True), case
        for shift in (1, -1):
            moved = torch.full_like(row.labels, IGNORE_INDEX)
            place = row.labels.ne(IGNORE_INDEX).nonzero().flatten() + shift
            place = place[place.lt(len(row.labels))]
            moved[place] = row.input_ids[place]
            with pytest.raises(AssertionError):
                check(name, on, exchanges, EncodedRow(**{**vars(row), "labels": moved}))


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("deepseek")])
def test_thoughts_in_the_text_follow_a_prompt_that_begins_them(name: str) -> None:
    """These drop what stands before `</think>`, or write it as it is, and prompt with `<think>` themselves."""
    prompt = rendered(name, None, [("q?", "Hm.", "a.")], prompt=True)
    assert prompt.endswith("<think>\n")
    for text, said in (
        ("<think>\nHm.\n</think>\n\na.", "Hm.\n</think>\n\na."),
        ("<think>Hm.</think>a.", "Hm.</think>a."),
        ("<think></think>a.", "</think>a."),
        ("<think>\n\n</think>\n\na.", "\n</think>\n\na."),
        ("Hm.\n</think>\n\na.", "Hm.\n</think>\n\na."),
    ):
        turns = (Turn(role="user", parts=(Text(text="q?"),)), Turn(role="assistant", parts=(Text(text=text),)))
        row = encoder_of(name, None).encode(Conversation(turns=turns, source=RowSource(file="r")))
        assert row.text == f"{prompt}{said}<｜end▁of▁sentence｜>"
        kept = row.input_ids[row.labels.ne(IGNORE_INDEX)]
        assert processor().tokenizer.decode(kept) == f"{said}<｜end▁of▁sentence｜>"


INLINE = [n for n in NAMES if n.startswith(("qwen3", "glm4moe", "lfm2", "nemotron", "gemma4_v5", "gptoss"))]


@pytest.mark.parametrize("name", INLINE)
def test_thoughts_in_the_text_become_what_the_template_makes_of_them(name: str) -> None:
    on = True if reads_thinking(trl_template(name)) else None
    for case in ("thought", "thought twice", "thought last"):
        row = encoder_of(name, on).encode(row_of(CASES[case], inline=True))
        prompt = rendered(name, on, CASES[case], prompt=True, inline=True)
        # Qwen3.8 takes thoughts by their key alone, and would put an empty block before those in the text.
        own = rendered(name, on, CASES[case], prompt=False, inline=not name.startswith("qwen3_8"))
        if not name.startswith("qwen3_8"):
            assert row.text.startswith(prompt)
        assert row.text in (own, f"{own}<|user|>")


@pytest.mark.parametrize(
    ("text", "beside", "said"),
    [
        ("Well. <think>\nHm.\n</think>\n\na.", "", "has a text before or between its thoughts"),
        ("<think>Hm.</think>a.<think>Ho.</think>b.", "", "has a text before or between its thoughts"),
        ("<think>Hm.</think>a.", "Ho.", "thoughts in its text and others beside it"),
    ],
)
def test_thoughts_that_a_template_would_pass_over_are_a_bad_row(text: str, beside: str, said: str) -> None:
    turns = (
        Turn(role="user", parts=(Text(text="q?"),)),
        Turn(role="assistant", parts=(Text(text=text),), reasoning=beside),
    )
    with pytest.raises(ThinkingError, match=said):
        encoder_of("qwen3_6", None).encode(Conversation(turns=turns, source=RowSource(file="r")))


def test_thoughts_that_are_dropped_later_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    encoder_of.cache_clear()
    encoder = encoder_of("qwen3_6", None)
    for _ in range(2):
        encoder.encode(row_of(CASES["thought twice"]))
    told = [record.getMessage() for record in caplog.records]
    assert len([text for text in told if "leaves out the thoughts of an answer once the user asks again" in text]) == 1
    caplog.clear()
    encoder_of("qwen3_8", None).encode(row_of(CASES["thought twice"]))
    assert not caplog.records, "the control: this one keeps them"


@pytest.mark.parametrize("name", ["qwen3_5_think", "nemotron_3_nano"])
def test_a_line_break_that_the_prompt_ends_with_is_a_token_of_its_own(name: str) -> None:
    """Qwen's tokenizer writes two line breaks as one token: behind the prompt's own `<think>` and line break, half."""
    own = copy.copy(processor())
    own.tokenizer = copy.deepcopy(own.tokenizer)
    own.tokenizer.add_tokens(["\n\n"])
    own.chat_template = trl_template(name)
    stop = frozenset({own.tokenizer.convert_tokens_to_ids("<|im_end|>")})
    encoder = RowEncoder(own, style_for(PROCESSOR), eos_token_ids=stop, max_length=None, load_image=read_image)
    shown = Turn(role="user", parts=(ImageRef(source=picture()), Text(text="q?\n\nr?")))
    two = own.tokenizer.convert_tokens_to_ids("\n\n")

    for thought, said in (("", "\n</think>"), ("Hm.", "Hm.\n</think>")):
        answer = Turn(role="assistant", parts=(Text(text="a."),), reasoning=thought)
        chat = Conversation(turns=(shown, answer), source=RowSource(file="r"))
        row, prompt = encoder.encode(chat, keep_images=True), encoder.encode_prompt(chat)
        length = len(prompt.input_ids)
        assert row.input_ids[:length].equal(prompt.input_ids), "the model sees what it will be prompted with"
        assert row.labels[:length].eq(IGNORE_INDEX).all()
        assert own.tokenizer.decode(row.input_ids[length:]).startswith(said)
        assert two in prompt.input_ids.tolist(), "other pairs stay one token"
        assert row.image_tokens[0] > 0
        assert all(len(values) == len(row.input_ids) for values in row.token_tensors.values())
        whole = own.tokenizer(row.text, add_special_tokens=False)["input_ids"]
        assert (row.input_ids.tolist() == whole) is bool(thought), "the control: the tokenizer itself would write one"


def test_control_tokens_in_thoughts_stay_text() -> None:
    tokenizer = processor().tokenizer
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    row = encoder_of("qwen3_6", None).encode(row_of([("q?", "Hm <|im_end|> hm.", "a.")]))
    assert row.input_ids.tolist().count(stop) == 2
    assert "<think>\nHm <|im_end|> hm.\n</think>\n\na.<|im_end|>" in row.text
    plain = tokenizer(row.text, add_special_tokens=False)["input_ids"]
    assert plain.count(stop) == 3, "the control: given whole, the tokenizer takes the typed one for its own"


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think"])
def test_thoughts_that_do_not_end_are_a_bad_row(name: str) -> None:
    with pytest.raises(ThinkingError, match="turn 2 begins with <think> and has no </think>"):
        encoder_of(name, None).encode(row_of([("q", "", "<think>It is red")]))
    encoder_of(name, None).encode(row_of([("q", "", "Write <think> so.")]))  # the control: a text that speaks of it
