"""Thoughts, calls, tools and their results as rows of other tools hold them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.columns.schema import Schema
from vlm_lora.data.conversation import Conversation, RowSource, ToolCall, Turn
from vlm_lora.data.conversations.layouts import build_conversation
from vlm_lora.data.dataset import load_splits
from vlm_lora.data.images.values import ImagePlace
from vlm_lora.errors import DataError

CHAT = Schema(layout="messages", image="images", messages="messages")
PAIR = Schema(layout="prompt_completion", image="images", prompt="prompt", response="completion")
QUESTION = Schema(layout="question_answer", image="images", prompt="question", response="answer")
ASKED = {"role": "user", "content": "q"}
SAID = {"role": "assistant", "content": "a"}
FUNCTION = {"name": "zoom", "arguments": {"x": 3}}
CALL = ToolCall(name="zoom", arguments='{"x": 3}')
TOOL = {
    "type": "function",
    "function": {"name": "zoom", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}},
}


def build(row: dict[str, Any], schema: Schema = CHAT) -> Conversation:
    place = ImagePlace(folder=Path("/nowhere"))
    return build_conversation(row, schema, source=RowSource(file="r.jsonl", row=4), place=place)


def answer_of(turn: dict[str, Any]) -> Turn:
    """Return an answer, the same whether the chat is a list, JSON text, or a pair's completion."""
    chat = build({"messages": [ASKED, turn]})
    assert build({"messages": json.dumps([ASKED, turn])}) == chat
    assert build({"prompt": [ASKED], "completion": [turn]}, PAIR) == chat
    return chat.turns[1]


@pytest.mark.parametrize(
    "turn",
    [
        *({"content": "a", key: "Hm."} for key in ("reasoning_content", "reasoning", "thinking", "Reasoning")),
        {"content": "a", "reasoning": "Hm.", "reasoning_content": "Hm."},
        {"content": [{"type": "thinking", "thinking": "Hm.", "signature": "x"}, {"type": "text", "text": "a"}]},
        {"content": [{"type": "reasoning", "text": "Hm."}, {"type": "text", "text": "a"}], "thinking": None},
    ],
)
def test_thoughts_are_read_beside_the_text(turn: dict[str, Any]) -> None:
    found = answer_of({"role": "assistant", **turn})
    assert (found.reasoning, found.text) == ("Hm.", "a")
    assert answer_of(SAID).reasoning == "", "the control"


@pytest.mark.parametrize(
    ("turn", "calls"),
    [
        ({"tool_calls": [{"id": "c1", "type": "function", "function": FUNCTION}]}, [("zoom", '{"x": 3}', "c1")]),
        ({"tool_calls": [{"type": "function", "function": {**FUNCTION, "arguments": '{"x":3}'}}]},
         [("zoom", '{"x":3}', None)]),
        ({"tool_calls": [FUNCTION, FUNCTION]}, [("zoom", '{"x": 3}', None)] * 2),
        ({"tool_calls": json.dumps([FUNCTION])}, [("zoom", '{"x": 3}', None)]),
        ({"function_call": {"name": "zoom", "arguments": '{"x": 3}'}}, [("zoom", '{"x": 3}', None)]),
        ({"tool_call": {"name": "zoom", "parameters": {"x": 3, "y": None}}}, [("zoom", '{"x": 3}', None)]),
        ({"tool_calls": [{"name": "stop"}]}, [("stop", "{}", None)]),
        ({"tool_calls": [{"name": "stop", "arguments": ""}]}, [("stop", "{}", None)]),
    ],
)  # fmt: skip
def test_calls_are_read_with_and_without_a_text(turn: dict[str, Any], calls: list[tuple[Any, ...]]) -> None:
    wanted = tuple(ToolCall(name=name, arguments=arguments, id=key) for name, arguments, key in calls)
    for content in ({"content": ""}, {"content": None}, {}, {"content": "Closer:"}):
        found = answer_of({"role": "assistant", **content, **turn})
        assert (found.tool_calls, found.text) == (wanted, content.get("content") or "")


def test_turns_of_other_tools_are_calls_and_results() -> None:
    """ms-swift's and LLaMA-Factory's roles; calls that follow one another are one answer."""
    told = json.dumps(FUNCTION)
    swift = [ASKED, {"role": "assistant", "content": "Closer:"}, {"role": "tool_call", "content": told},
             {"role": "tool_call", "content": told}, {"role": "tool_response", "content": "red"}, SAID]  # fmt: skip
    factory = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": told},
        {"from": "observation", "value": "red"},
        {"from": "gpt", "value": "a"},
    ]
    found = build({"messages": swift})
    assert [turn.role for turn in found.turns] == ["user", "assistant", "tool", "assistant"]
    assert found.turns[1].tool_calls == (CALL, CALL)
    assert [turn.text for turn in found.turns] == ["q", "Closer:", "red", "a"]
    found = build({"messages": factory})
    assert [turn.role for turn in found.turns] == ["user", "assistant", "tool", "assistant"]
    assert found.turns[1].tool_calls == (CALL,)
    result = {"role": "tool", "content": "red", "tool_call_id": "c1", "name": "zoom"}
    found = build({"messages": [ASKED, {"role": "assistant", "tool_calls": [FUNCTION]}, result, SAID]})
    assert (found.turns[2].tool_call_id, found.turns[2].name) == ("c1", "zoom")


PARTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"type": "tool_use", "id": "c1", "name": "zoom", "input": {"x": 3}},
        {"type": "tool_result", "tool_use_id": "c1", "content": "red"},
    ),
    (
        {"type": "tool_use", "id": "c1", "name": "zoom", "input": {"x": 3}, "text": None},
        {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "red"}], "is_error": False},
    ),
    (
        {"toolUse": {"toolUseId": "c1", "name": "zoom", "input": {"x": 3}}},
        {"toolResult": {"toolUseId": "c1", "content": [{"text": "red"}], "status": "success"}},
    ),
    (
        {"functionCall": {"id": "c1", "name": "zoom", "args": {"x": 3}}},
        {"functionResponse": {"id": "c1", "name": "zoom", "response": {"colour": "red"}}},
    ),
]
"""Calls and results as parts: Anthropic's, Bedrock's, Gemini's."""


@pytest.mark.parametrize(("call", "result"), PARTS)
def test_parts_of_other_services_are_calls_and_results(call: dict[str, Any], result: dict[str, Any]) -> None:
    closer = {"role": "assistant", "content": [{"type": "text", "text": "Closer:"}, call]}
    found = build({"messages": [ASKED, closer, {"role": "user", "content": [result]}, SAID]})
    assert [turn.role for turn in found.turns] == ["user", "assistant", "tool", "assistant"]
    assert found.turns[1].tool_calls == (ToolCall(name="zoom", arguments='{"x": 3}', id="c1"),)
    assert (found.turns[1].text, found.turns[2].tool_call_id) == ("Closer:", "c1")
    assert found.turns[2].text in ("red", '{"colour": "red"}')
    both = {"role": "user", "content": [result, {"type": "text", "text": "And now?"}]}
    found = build({"messages": [ASKED, {"role": "assistant", "content": [call]}, both, SAID]})
    assert [turn.role for turn in found.turns] == ["user", "assistant", "tool", "user", "assistant"]
    assert found.turns[3].text == "And now?"
    with pytest.raises(DataError, match="a part that calls a tool stands before its text"):
        build({"messages": [ASKED, {"role": "assistant", "content": [call, {"type": "text", "text": "a"}]}]})


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [TOOL["function"]], TOOL, [json.dumps(TOOL)]])
def test_tools_of_a_column_or_a_turn_belong_to_the_conversation(tools: Any) -> None:
    wanted = (json.dumps(TOOL),)
    system = {"role": "system", "content": "s", "tools": tools}
    assert build({"messages": [ASKED, SAID], "tools": tools}).tools == wanted
    assert build({"messages": [ASKED, SAID], "Functions": tools}).tools == wanted
    assert build({"messages": [system, ASKED, SAID], "tools": None}).tools == wanted
    assert build({"messages": [system, ASKED, SAID], "tools": [TOOL]}).tools == wanted, "twice the same"
    assert build({"question": "q", "answer": "a", "tools": tools}, QUESTION).tools == wanted
    assert build({"question": "q", "answer": "a", "tools": ["saw"]}, QUESTION).tools == (), "a list of things"


def test_nulls_that_arrow_fills_in_are_no_arguments(tmp_path: Path) -> None:
    calls = [{"id": None, "function": {"name": "zoom", "arguments": {"x": 3}}},
             {"id": None, "function": {"name": "turn", "arguments": {"way": {"left": True}}}}]  # fmt: skip
    told = {"role": "assistant", "content": None, "tool_calls": calls}
    rows = [{"messages": [ASKED, told, {"role": "tool", "content": "red"}, SAID], "tools": [TOOL], "image": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    config = DataConfig(dataset_name=str(tmp_path / "rows.parquet"), validation_fraction=0.0)
    train = load_splits(config, need_train=True, need_validation=False).train
    assert train is not None
    read = train[0]
    assert [call.arguments for call in read.turns[1].tool_calls] == ['{"x": 3}', '{"way": {"left": true}}']
    assert read.turns[0].tool_calls == ()
    assert json.loads(read.tools[0])["function"]["name"] == "zoom"


@pytest.mark.parametrize("write", [json.dumps, repr])
def test_tables_write_tools_and_calls_as_json_or_as_python(write: Callable[[Any], str]) -> None:
    told = {"role": "assistant", "content": None, "tool_calls": write([FUNCTION])}
    chat = [ASKED, told, {"role": "tool", "content": "red"}, SAID]
    plain = build({"messages": [ASKED, {**told, "tool_calls": [FUNCTION]}, *chat[2:]], "tools": [TOOL]})
    assert build({"messages": chat, "tools": write([TOOL])}) == plain
    assert plain.turns[1].tool_calls, "the control"
    assert plain.tools


@pytest.mark.parametrize("write", [json.dumps, repr])
def test_tools_and_a_history_in_cells_of_csv(write: Callable[[Any], str], tmp_path: Path) -> None:
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as stream:
        row = ("q2", "a2", write([["q", "a"]]), write([TOOL]))
        csv.writer(stream).writerows([("question", "answer", "history", "tools"), row])
    config = DataConfig(dataset_name=str(tmp_path / "rows.csv"), validation_fraction=0.0)
    train = load_splits(config, need_train=True, need_validation=False).train
    assert train is not None
    assert [turn.text for turn in train[0].turns] == ["q", "a", "q2", "a2"]
    assert [json.loads(tool) for tool in train[0].tools] == [TOOL]


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({"reasoning_content": "Hm.", "content": ""}, "its thoughts lead to no text and no call"),
        ({"reasoning_content": ["Hm."], "content": "a"}, "Thoughts are written as text"),
        ({"reasoning": "Hm.", "thinking": "Ho.", "content": "a"}, "its thoughts stand in two places .* differ"),
        (
            {"content": [{"type": "text", "text": "a"}, {"type": "thinking", "thinking": "Hm."}]},
            "a part with thoughts stands behind its text",
        ),
        ({"content": [{"type": "thinking"}, {"type": "text", "text": "a"}]}, "A part of thoughts has no text"),
        ({"tool_calls": [{"name": "", "arguments": {"x": 3}}]}, "names no function"),
        ({"tool_calls": "zoom(3)"}, "'zoom\\(3\\)', which is no JSON"),
        ({"tool_calls": ["zoom"]}, "'zoom', which is no JSON"),
        ({"tool_calls": [3]}, "3, which is no call"),
        ({"tool_calls": [{"name": "zoom", "arguments": [3]}]}, r"The arguments in its 'tool_calls' are \[3\]"),
        ({"tool_calls": [{"name": "zoom", "arguments": "x = 3"}]}, "'x = 3', which is no JSON"),
        ({"tool_calls": [{**FUNCTION, "result": "red"}]}, "has 'result', which is not read"),
        ({"tool_calls": [{"type": "custom", "name": "zoom"}]}, "has 'type', which is not read"),
        ({"tool_calls": [FUNCTION], "function_call": FUNCTION}, "its calls stand in 'tool_calls', 'function_call'"),
        ({"tool_calls": [{"name": "zoom", "arguments": {"x": "\ud83d"}}]}, "half of a surrogate pair"),
        ({"tool_calls": [{"name": "zoom", "arguments": '{"x": "\\ud83d"}'}]}, "half of a surrogate pair"),
    ],
)
def test_what_cannot_be_read_is_a_bad_row(turn: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=f"^r.jsonl row 4: .*{said}"):
        build({"messages": [ASKED, {"role": "assistant", **turn}]})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tools": "zoom"}, "The column 'tools' holds 'zoom', which is no JSON"),
        ({"tools": "[{'name': 'zoom', 'parameters': {1, 2}}]"}, "which is no JSON, nor what Python writes of such"),
        ({"tools": [{"parameters": {"type": "object"}}]}, "which describes no function"),
        (
            {"tools": [TOOL], "messages": [{**ASKED, "tools": [{"name": "other"}]}, SAID]},
            "The row's tools stand in .* and differ",
        ),
        ({"messages": [{**ASKED, "tool_calls": [FUNCTION]}, SAID]}, "Turn 1 .user.: its 'tool_calls' .* is not read"),
        ({"messages": [{**ASKED, "reasoning": "Hm."}, SAID]}, "Turn 1 .user.: its 'reasoning' .* is not read"),
        ({"messages": [ASKED, {"role": "tool_call", "content": "zoom"}, SAID]}, "Turn 2 .tool_call.: its text holds"),
        ({"messages": [ASKED, {"role": "tool", "content": {"x": 1}}, SAID]}, "Turn 2 .tool.: A part has neither a"),
        (
            {"messages": [ASKED, {**SAID, "weight": 0}, {"role": "tool_call", "content": json.dumps(FUNCTION)}]},
            "one of them alone is trained on",
        ),
        (
            {"messages": [ASKED, {"role": "user", "content": [{**PARTS[0][1], "is_error": True}]}, SAID]},
            "A part with a tool's result has 'is_error', which is not read",
        ),
        ({"messages": [ASKED, SAID, {"role": "tool", "content": "red"}]}, "The last turn is the tool's"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_read_are_bad(row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=f"^r.jsonl row 4: .*{said}"):
        build({"messages": [ASKED, SAID], **row})
