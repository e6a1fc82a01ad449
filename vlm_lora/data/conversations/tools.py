"""What an answer thinks before its text and calls behind it, and the tools that a row tells of.

Read here, written by the model's chat template where it knows them (`batching/chat`), else the row is refused there.
Objects come from Arrow with every key that any row has, null where a row has it not: such keys are left out. What is
written as JSON text stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_lora.data.columns.names import CALL_KEYS, REASONING_KEYS, TOOL_KEYS
from vlm_lora.data.conversation import ToolCall
from vlm_lora.data.conversations.texts import written_value
from vlm_lora.data.conversations.unread import defines_functions, says_nothing
from vlm_lora.data.wording import quoted, short
from vlm_lora.errors import DataError

_THOUGHT_PARTS: Mapping[str, tuple[str, ...]] = {
    "thinking": ("thinking", "text", "content"),
    "reasoning": ("reasoning", "text", "content"),
}
"""Type of a part that holds thoughts (Anthropic's, OpenAI's) to the keys that may hold their text."""

_OF_CALLS = ("id", "type", "index", "function")
_OF_FUNCTIONS = ("name", "arguments", "parameters")


def read_thoughts(turn: Mapping[str, Any], content: Any) -> tuple[str, Any]:
    """Return an answer's thoughts, and its content without the parts that hold some.

    Raises:
        DataError: they are no text, stand in two places, or behind the answer's text.
    """
    found = {key: value for key, value in turn.items() if key.casefold() in REASONING_KEYS and not says_nothing(value)}
    for key, value in found.items():
        if not isinstance(value, str):
            raise DataError(f"its '{key}' is {short(value)}. Thoughts are written as text.")
    told = [*dict.fromkeys(found.values())]
    if isinstance(content, list | tuple):
        rest = [part for part in content if _thought_in(part) is None]
        inner = [thought for part in content if (thought := _thought_in(part)) is not None]
        if any(_thought_in(part) is None for part in content[: len(inner)]):
            raise DataError("a part with thoughts stands behind its text. Thoughts come first.")
        told += [thought for thought in ["".join(inner)] if thought.strip() and thought not in told]
        content = rest
    if len(told) > 1:
        raise DataError(f"its thoughts stand in two places ({quoted(found) or 'its parts'}) and differ. Leave one out.")
    return (told[0] if told else ""), content


def _thought_in(part: Any) -> str | None:
    """Return what a part with thoughts says; None for any other part."""
    if isinstance(part, Mapping) and part.get("thought") is True and isinstance(part.get("text"), str):
        return str(part["text"])  # Gemini's
    if not isinstance(part, Mapping) or str(part.get("type")) not in _THOUGHT_PARTS:
        return None
    text = next((part[key] for key in _THOUGHT_PARTS[part["type"]] if part.get(key) is not None), None)
    if not isinstance(text, str):
        raise DataError(f'A part of thoughts has no text; it is written as {{"type": "{part["type"]}", "text": ...}}.')
    return text


def read_calls(turn: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    """Return the calls that an answer holds beside its text.

    Raises:
        DataError: a call that has no name, or arguments that are no object.
    """
    held = {key: value for key, value in turn.items() if key.casefold() in CALL_KEYS and not says_nothing(value)}
    if len(held) > 1:
        raise DataError(f"its calls stand in {quoted(held)}. Leave one of them out.")
    return tuple(call for key, value in held.items() for call in calls_in(value, f"its '{key}'"))


def calls_in(value: Any, what: str) -> list[ToolCall]:
    """Return the calls that a value holds: one or a list of them, as objects or as text.

    Args:
        value: `{"name": ..., "arguments": ...}`, or that as the `function` of an object, as OpenAI has it.
        what: what messages call it.

    Raises:
        DataError: a call that has no name, or arguments that are no object.
    """
    given = _from_text(value, what)
    calls = given if isinstance(given, list | tuple) else [given]
    return [_call(call, what) for call in calls if not says_nothing(call)]


def _call(value: Any, what: str) -> ToolCall:
    form = '{"name": ..., "arguments": {...}}'
    value = _from_text(value, what)
    if not isinstance(value, Mapping):
        raise DataError(f"{what} holds {short(value)}, which is no call. It is written as {form}.")
    outer = value if "function" in value and isinstance(value["function"], Mapping) else {"function": value}
    function = outer["function"]
    more = [key for key in outer if key not in _OF_CALLS] + [key for key in function if key not in _OF_FUNCTIONS]
    if outer["function"] is value:
        more = [key for key in more if key not in _OF_CALLS]
    unread = [key for key in more if not says_nothing({**outer, **function}[key])]
    if unread or value.get("type") not in (None, "function"):
        raise DataError(f"{what} has {quoted(unread or ['type'])}, which is not read. It is written as {form}.")
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{what} names no function ({short(value)}). It is written as {form}.")
    number = value.get("id")
    return ToolCall(name=name, arguments=_arguments(function, what), id=None if number is None else str(number))


def _arguments(function: Mapping[str, Any], what: str) -> str:
    given: Any = next((function[key] for key in ("arguments", "parameters") if function.get(key) is not None), {})
    parsed = _from_json(given, what) if given != "" else {}
    if not isinstance(parsed, Mapping):
        raise DataError(f"The arguments in {what} are {short(given)}. They are an object, or JSON text of one.")
    if isinstance(given, str) and given:
        return given
    return json.dumps(_without_nulls(parsed), ensure_ascii=False)


_CALL_PARTS = ("toolUse", "functionCall", "function_call")
"""Keys of a part that hold a call: Bedrock's, Gemini's; Anthropic's part is of the type `tool_use`."""
_RESULT_PARTS = ("toolResult", "functionResponse", "function_response")
"""Keys of a part that hold a result; Anthropic's part is of the type `tool_result`."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a tool answered, as a part of a user's turn."""

    content: Any
    """A text, or parts."""
    name: str | None
    tool_call_id: str | None


def split_calls(content: Any) -> tuple[tuple[ToolCall, ...], Any]:
    """Return the calls among an answer's parts, and the content without them.

    Raises:
        DataError: a call that cannot be read, or one before a text: templates write calls last.
    """
    found, rest = _split(content, "tool_use", _CALL_PARTS)
    if found and any(_inner(part, "tool_use", _CALL_PARTS) is not None for part in content[: len(rest)]):
        raise DataError("a part that calls a tool stands before its text. Calls come last.")
    return tuple(_call(_renamed(part), "a part") for part in found), rest


def split_results(content: Any) -> tuple[list[Result], Any]:
    """Return the results among the parts of a user's turn, and the content without them; they come first."""
    found, rest = _split(content, "tool_result", _RESULT_PARTS)
    results = []
    for part in found:
        known = ("type", "status", "cache_control", "tool_use_id", "toolUseId", "id", "name", "content", "response")
        unread = [key for key, value in part.items() if key not in known and not says_nothing(value)]
        if unread:
            raise DataError(f"A part with a tool's result has {quoted(unread)}, which is not read.")
        key = next((part[name] for name in ("tool_use_id", "toolUseId", "id") if part.get(name) is not None), None)
        said = part.get("content", part.get("response"))
        results.append(Result(content=_result_text(said), name=part.get("name"), tool_call_id=key))
    return results, rest


def _split(content: Any, kind: str, keys: Sequence[str]) -> tuple[list[Mapping[str, Any]], Any]:
    if not isinstance(content, list | tuple):
        return [], content
    inner = [_inner(part, kind, keys) for part in content]
    rest = [part for part, found in zip(content, inner, strict=True) if found is None]
    return [found for found in inner if found is not None], rest


def _inner(part: Any, kind: str, keys: Sequence[str]) -> Mapping[str, Any] | None:
    """Return what a part of this kind holds; None for any other part."""
    if not isinstance(part, Mapping):
        return None
    if part.get("type") == kind:
        return part
    return next((part[key] for key in keys if isinstance(part.get(key), Mapping)), None)


def _renamed(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call of a part under the names that calls have elsewhere."""
    names = {"input": "arguments", "args": "arguments", "toolUseId": "id"}
    return {names.get(key, key): value for key, value in call.items() if key not in ("type", "cache_control")}


def _result_text(value: Any) -> Any:
    """Return a result as a text or parts: an object is written as JSON."""
    if isinstance(value, Mapping):
        return json.dumps(_without_nulls(value), ensure_ascii=False)
    if isinstance(value, list | tuple):
        return [
            {"type": "text", "text": _result_text(part["json"])}
            if isinstance(part, Mapping) and isinstance(part.get("json"), Mapping)
            else part
            for part in value
        ]
    return "" if value is None else value


def tool_columns(row: Mapping[str, Any], taken: Iterable[str], *, chat: bool) -> list[str]:
    """Return the columns that hold tools: in a row that is no chat only where they define functions."""
    others = frozenset(taken)
    return [
        column
        for column, value in row.items()
        if column.casefold() in TOOL_KEYS
        and column not in others
        and not says_nothing(value)
        and (chat or defines_functions(value))
    ]


def read_tools(held: Sequence[tuple[str, Any]]) -> tuple[str, ...]:
    """Return the tools that a row tells of, each as JSON text of `{"type": "function", "function": {...}}`.

    Args:
        held: what holds tools, and its value: a list of functions' descriptions, or text of one.

    Raises:
        DataError: no such list, or two that differ.
    """
    found = [*dict.fromkeys(_tools_in(value, what) for what, value in held if not says_nothing(value))]
    if len(found) > 1:
        raise DataError(f"The row's tools stand in {quoted(what for what, _ in held)} and differ. Leave one out.")
    return found[0] if found else ()


def _tools_in(value: Any, what: str) -> tuple[str, ...]:
    given = _from_text(value, what)
    tools = []
    for item in given if isinstance(given, list | tuple) else [given]:
        tool = _from_text(item, what)
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(
                f"{what} holds {short(item)}, which describes no function. Tools are a list of "
                '{"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}.'
            )
        whole = tool if "function" in tool else {"type": "function", "function": function}
        tools.append(json.dumps(_without_nulls(whole), ensure_ascii=False))
    return tuple(tools)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(inner) for inner in value]
    return value


def _from_text(value: Any, what: str) -> Any:
    """Return what a text writes out by JSON or, as tables without lists do, by Python; another value as it is."""
    if not isinstance(value, str):
        return value
    written = written_value(value)
    try:
        json.dumps(written)
    except (TypeError, ValueError, RecursionError):  # Python's sets and bytes
        written = None
    if written is None:
        raise DataError(f"{what} holds {short(value)}, which is no JSON, nor what Python writes of such.")
    return written


def _from_json(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise DataError(f"{what} holds {short(value)}, which is no JSON.") from None
