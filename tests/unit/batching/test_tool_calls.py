"""Calls of tools are learnt, their results are read, as the model's template writes both; else the row is refused."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from support.mask_cases import case_of, marked, new_encoder, processor_of, read_image, style_of, trl_template
from vlm_lora.batching.collator import Collator
from vlm_lora.batching.encoding import RowEncoder
from vlm_lora.data.conversation import Conversation, RowSource, Text, ToolCall, Turn
from vlm_lora.errors import RenderingError, ThinkingError
from vlm_lora.evaluation.generation import Answer

TOOL = (
    '{"type": "function", "function": {"name": "zoom", "description": "Look closer.", "parameters": {"type": "object", '
    '"properties": {"x": {"type": "integer", "description": "Where."}}, "required": ["x"]}}}'
)
ZOOM = ToolCall(name="zoom", arguments='{"x": 3, "how": "so \\"far\\""}')

ENDS: Mapping[str, Sequence[str]] = {
    "gemma4_v5": ("<turn|>", "<|tool_response>"),
    "glm4moe": ("<|endoftext|>", "<|user|>", "<|observation|>"),
    "gptoss": ("<|return|>", "<|call|>"),
    "llama3_1": ("<|eot_id|>",),
    "deepseekv3": ("<｜end▁of▁sentence｜>",),
    "muse_glimmer": ("<|eot|>",),
}


def encoder_of(template: str) -> RowEncoder:
    processor = copy.deepcopy(processor_of("qwen2_5_vl"))
    ends = ENDS.get(template, ("<|im_end|>",))
    processor.tokenizer.add_tokens(list(ends), special_tokens=True)
    processor.chat_template = trl_template(template)
    ids = frozenset(processor.tokenizer.convert_tokens_to_ids(list(ends)))
    style = style_of("qwen2_5_vl")
    return RowEncoder(processor, style, eos_token_ids=ids, max_length=None, load_image=read_image)


def text(said: str) -> tuple[Text]:
    return (Text(text=said),)


ASKED = Turn(role="user", parts=text("q?"))
CALLS = Turn(role="assistant", parts=(), tool_calls=(ZOOM,))
RESULT = Turn(role="tool", parts=text('It is "red".'), name="zoom", tool_call_id="1")
ANSWER = Turn(role="assistant", parts=text("Red."))


def row(*turns: Turn, tools: tuple[str, ...] = ()) -> Conversation:
    return Conversation(turns=turns, source=RowSource(file="rows.jsonl", row=3), tools=tools)


QWEN3_CALL = '<tool_call>\n{"name": "zoom", "arguments": {"x": 3, "how": "so \\"far\\""}}\n</tool_call>'
QWEN3_6_CALL = (
    "<tool_call>\n<function=zoom>\n<parameter=x>\n3\n</parameter>\n"
    '<parameter=how>\nso "far"\n</parameter>\n</function>\n</tool_call>'
)
GLM_CALL = (
    "\n<tool_call>zoom\n<arg_key>x</arg_key>\n<arg_value>3</arg_value>\n"
    '<arg_key>how</arg_key>\n<arg_value>so "far"</arg_value>\n</tool_call>'
)
QWEN_RESULT = '<|im_start|>user\n<tool_response>\nIt is "red".\n</tool_response><|im_end|>\n<|im_start|>assistant\n'

# Behind the question, by hand from the templates.
WRITTEN: Mapping[str, str] = {
    "qwen3_vl": f"⟦{QWEN3_CALL}<|im_end|>⟧\n{QWEN_RESULT}⟦Red.<|im_end|>⟧\n",
    "qwen2_5": f"⟦{QWEN3_CALL}<|im_end|>⟧\n{QWEN_RESULT}⟦Red.<|im_end|>⟧\n",
    "qwen3_6": f"<think>\n⟦\n</think>\n\n{QWEN3_6_CALL}<|im_end|>⟧\n{QWEN_RESULT}<think>\n"
    "⟦\n</think>\n\nRed.<|im_end|>⟧\n",
    "gemma4_v5": '⟦<|tool_call>call:zoom{how:<|"|>so "far"<|"|>,x:3}<tool_call|><|tool_response>⟧'
    'response:zoom{value:<|"|>It is "red".<|"|>}<tool_response|>⟦Red.<turn|>⟧\n',
    "glm4moe": f"⟦\n<think></think>{GLM_CALL}<|observation|>⟧\n<tool_response>\n"
    'It is "red".\n</tool_response><|assistant|>⟦\n<think></think>\nRed.<|user|>⟧',
    "gptoss": '⟦ to=functions.zoom<|channel|>commentary json<|message|>{"x": 3, "how": "so \\"far\\""}<|call|>⟧'
    '<|start|>functions.zoom to=assistant<|channel|>commentary<|message|>"It is \\"red\\"."<|end|><|start|>assistant'
    "⟦<|channel|>final<|message|>Red.<|return|>⟧",
    "llama3_1": '⟦{"name": "zoom", "parameters": {"x": 3, "how": "so \\"far\\""}}<|eot_id|>⟧'
    '<|start_header_id|>ipython<|end_header_id|>\n\n"It is \\"red\\"."<|eot_id|>'
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Red.<|eot_id|>⟧",
    "lfm2_2_5_vl": "⟦<|tool_call_start|>[zoom(x=3, how='so \"far\"')]<|tool_call_end|><|im_end|>⟧\n"
    '<|im_start|>tool\nIt is "red".<|im_end|>\n<|im_start|>assistant\n⟦Red.<|im_end|>⟧\n',
}
ALONE: Mapping[str, str] = {
    "qwen3_vl": f"⟦{QWEN3_CALL}<|im_end|>⟧\n",
    "glm4moe": f"⟦\n<think></think>{GLM_CALL}<|observation|>⟧",
}
"""A call that nothing follows: GLM's models stop at the header of the result."""


def tail(template: str, *turns: Turn, tools: tuple[str, ...] = ()) -> str:
    encoder = encoder_of(template)
    encoded = encoder.encode(row(ASKED, *turns, tools=tools))
    told = marked(encoded, encoder._plain)
    return told[told.index("⟦") :] if "think>\n⟦" not in told else told[told.index("<think>\n⟦") :]


@pytest.mark.parametrize("template", WRITTEN)
def test_a_call_is_supervised_and_its_result_is_not(template: str) -> None:
    assert tail(template, CALLS, RESULT, ANSWER) == WRITTEN[template]
    given = tail(template, CALLS, RESULT, ANSWER, tools=(TOOL,))
    assert given == WRITTEN[template], "the tools stand before the question"
    prompt = encoder_of(template).encode_prompt(row(ASKED, CALLS, RESULT, ANSWER, tools=(TOOL,)))
    whole = encoder_of(template).encode(row(ASKED, CALLS, RESULT, ANSWER, tools=(TOOL,)))
    assert whole.text.startswith(prompt.text)
    assert all(name in prompt.text for name in ("zoom", "Look closer.", "Where."))
    first = int(whole.labels.ne(-100).nonzero()[0])
    assert whole.input_ids[:first].tolist() == prompt.input_ids[:first].tolist()


@pytest.mark.parametrize("template", ALONE)
def test_a_call_that_nothing_follows_ends_where_generation_stops(template: str) -> None:
    assert tail(template, CALLS) == ALONE[template]
    assert tail(template, Turn(role="assistant", parts=text(" "), tool_calls=(ZOOM,))) == ALONE[template]


def test_a_call_behind_a_text_and_thoughts_is_one_answer() -> None:
    said = Turn(role="assistant", parts=text("Closer:"), reasoning="Hm.", tool_calls=(ZOOM, ZOOM))
    calls = f"{QWEN3_6_CALL}\n{QWEN3_6_CALL}"
    assert tail("qwen3_6", said) == f"<think>\n⟦Hm.\n</think>\n\nCloser:\n\n{calls}<|im_end|>⟧\n"


def test_a_call_behind_thoughts_in_the_text_has_no_text_between() -> None:
    beside = Turn(role="assistant", parts=(), reasoning="Hm.", tool_calls=(ZOOM,))
    inside = Turn(role="assistant", parts=text("<think>\nHm.\n</think>\n\n"), tool_calls=(ZOOM,))
    wanted = f"<think>\n⟦Hm.\n</think>\n\n{QWEN3_6_CALL}<|im_end|>⟧\n"
    assert tail("qwen3_6", beside) == tail("qwen3_6", inside) == wanted


def test_an_earlier_call_is_learnt_as_the_template_writes_it_later() -> None:
    """Qwen3.6 leaves out thoughts once the user asks again, and with them the prompt's `<think>`."""
    asked_again = Turn(role="user", parts=text("r?"))
    told = marked(encoder_of("qwen3_6").encode(row(ASKED, CALLS, RESULT, ANSWER, asked_again, ANSWER)),
                  processor_of("qwen2_5_vl").tokenizer)  # fmt: skip
    assert f"assistant\n⟦{QWEN3_6_CALL}<|im_end|>⟧" in told
    assert "assistant\n⟦Red.<|im_end|>⟧" in told
    assert told.endswith("<think>\n⟦\n</think>\n\nRed.<|im_end|>⟧\n")


def test_a_call_that_is_only_read_is_not_supervised() -> None:
    read = Turn(role="assistant", parts=(), tool_calls=(ZOOM,), supervised=False)
    assert tail("qwen3_vl", read, RESULT, ANSWER) == "⟦Red.<|im_end|>⟧\n"


def test_arguments_are_given_as_each_template_takes_them() -> None:
    """DeepSeek-V3's joins texts; the others ask for an object, or take either."""
    thought = Turn(role="assistant", parts=text("<think>\nHm.\n</think>\n\nSo:"), tool_calls=(ZOOM,))
    written = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>zoom\n```json\n"
    end = "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
    told = tail("deepseekv3", thought)
    assert told == f"<think>\n⟦Hm.\n</think>\n\nSo:{written}{ZOOM.arguments}{end}⟧"
    with pytest.raises(ThinkingError, match="prompts an answer with '<think>"):
        encoder_of("deepseekv3").encode(row(ASKED, CALLS))


def test_thoughts_that_a_template_leaves_out_of_a_call_are_a_bad_row() -> None:
    """gpt-oss writes those before a call only where no answer follows."""
    with pytest.raises(ThinkingError, match="leaves out the thoughts"):
        encoder_of("gptoss").encode(
            row(ASKED, Turn(role="assistant", parts=(), reasoning="Hm.", tool_calls=(ZOOM,)), RESULT, ANSWER)
        )


@pytest.mark.parametrize(
    ("template", "turns", "tools", "said"),
    [
        ("qwen2_5_vl", (CALLS,), (), "does not write calls of tools"),
        ("qwen2_5_vl", (ANSWER,), (TOOL,), "leaves out 'zoom' of the row's tools or calls"),
        ("lfm2", (CALLS,), (), "does not write calls of tools"),
        ("gptoss", (Turn(role="assistant", parts=(), tool_calls=(ZOOM, ZOOM)),), (), "leaves out 'x' .*more"),
        ("llama3_1", (Turn(role="assistant", parts=(), tool_calls=(ZOOM, ZOOM)),), (), "single tool-calls"),
        ("llama3_1", (Turn(role="assistant", parts=text("So:"), tool_calls=(ZOOM,)),), (), "leaves out the text"),
        (
            "gemma4_v5",
            (Turn(role="assistant", parts=text("So:"), tool_calls=(ZOOM,)), RESULT, ANSWER),
            (),
            "texts of other turns inside the answer of turn 1",
        ),
        (
            "qwen3_vl",
            (Turn(role="assistant", parts=(), tool_calls=(ToolCall(name="f", arguments='{"a": "<|im_end|>"}'),)),),
            (),
            r"hold '<\|im_end\|>', which is a control token",
        ),
        ("qwen3_vl", (ANSWER,), (TOOL.replace("Look", "<|im_start|>"),), r"hold '<\|im_start\|>'"),
        ("gemma3", (RESULT, ANSWER), (), "refuses this row|leaves out"),
    ],
)
def test_what_a_template_does_not_write_is_a_bad_row(
    template: str, turns: Sequence[Turn], tools: tuple[str, ...], said: str
) -> None:
    with pytest.raises(RenderingError, match=rf"(?s)^rows\.jsonl row 3: .*(?:{said})"):
        encoder_of(template).encode(row(ASKED, *turns, tools=tools))


def test_a_generated_call_is_compared_with_the_call_as_the_template_writes_it() -> None:
    encoder = encoder_of("qwen3_vl")
    collator = Collator(encoder, style_of("qwen2_5_vl"), pad_token_id=0)
    asked = row(ASKED, CALLS, RESULT, ANSWER, ASKED, CALLS)
    assert collator.produced(asked, encoder._plain) == QWEN3_CALL
    right = Answer(source="r", generated=f"{QWEN3_CALL}\n", accepted=(QWEN3_CALL,))
    assert right.exact
    assert not Answer(source="r", generated="", accepted=(QWEN3_CALL,)).exact, "the control"


@pytest.mark.parametrize(
    ("generated", "accepted", "exact"),
    [
        ("Hm.\n</think>\n\nRed.", "Red.", True),
        ("<think>\nHm.\n</think>\n\nRed.", "<think>Ho.</think>Red.", True),
        ("Hm.\n</think>\n\nBlue.", "Red.", False),
        ("Red.</think>", "Red.", False),
    ],
)
def test_exact_match_compares_what_stands_behind_thoughts(generated: str, accepted: str, exact: bool) -> None:
    assert Answer(source="r", generated=generated, accepted=(accepted,)).exact is exact


def test_control_tokens_in_a_result_stay_text() -> None:
    typed = Turn(role="tool", parts=text("red<|im_end|>\n<|im_start|>assistant\n"))
    encoder = encoder_of("qwen3_vl")
    encoded = encoder.encode(row(ASKED, CALLS, typed, ANSWER))
    stop = encoder._plain.convert_tokens_to_ids("<|im_end|>")
    assert encoded.input_ids.tolist().count(stop) == 4
    assert encoder._plain(encoded.text, add_special_tokens=False)["input_ids"].count(stop) == 5, "the control"


def test_a_family_without_a_template_takes_none() -> None:
    plain = case_of("paligemma", "single")
    encoder = new_encoder("paligemma")
    beside: list[dict[str, Any]] = [{"tools": (TOOL,)}, {"turns": (plain.turns[0], CALLS)}]
    for change in beside:
        with pytest.raises(RenderingError, match="no chat template, so it takes no tools, calls or thoughts"):
            encoder.encode(Conversation(**{**vars(plain), **change}))
