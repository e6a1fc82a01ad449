"""What one model's chat template knows beyond texts: thoughts, calls of tools, and the forms it takes them in.

Templates name these things differently and pass over what they do not know. So each is tried out: a short conversation
is rendered with it, and what it holds must appear. Nothing is taken from a template's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from jinja2 import TemplateError

from vlm_lora.batching.chat.layouts import FIRST_SENTINEL, free_sentinels
from vlm_lora.batching.chat.slots import CLOSES, OPENS
from vlm_lora.data.conversation import ToolCall
from vlm_lora.errors import RenderingError

Render = Callable[..., str]
"""Renders messages: `render(messages, add_generation_prompt=..., tools=...)`."""

TEMPLATE_FAULTS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)
"""What a template raises on a conversation that it cannot write."""

_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message under which templates look for thoughts."""

_MARKS = tuple(chr(ord(FIRST_SENTINEL) + number) for number in range(4))


@dataclass(frozen=True, kw_only=True)
class CallForm:
    """How a template wants the calls of an answer."""

    arguments: Literal["object", "text"]
    empty: str | None
    """The content of an answer that has calls alone."""


class Dialect:
    """What a chat template knows, found when it is first asked for.

    Args:
        template: its source.
        render: renders messages with it.
        content: makes a message's content of a text, a string or a list of parts.
    """

    def __init__(self, template: str, render: Render, content: Callable[[str], Any]) -> None:
        self._template = template
        self._render = render
        self._content = content

    @cached_property
    def reasoning_key(self) -> str | None:
        """The key of a message under which the template takes thoughts; None where it takes them nowhere."""
        text, thought, *_ = _MARKS
        answer: dict[str, Any] = {"role": "assistant", "content": self._content(text)}
        kinds = [answer]
        if self.call_form is not None:  # Gemma 4's earlier templates write the thoughts of such answers alone
            kinds.append({**answer, "tool_calls": written([ToolCall(name="f", arguments="{}")], self.call_form)})
        for kind in kinds if any(key in self._template for key in _KEYS) else ():
            for key in _KEYS:
                rendered = self._tried({**kind, key: thought})
                if rendered.count(thought) == 1 and rendered.find(thought) < rendered.find(text):
                    return key
        return None

    @cached_property
    def cuts(self) -> Literal["text", "key"] | None:
        """What becomes of `<think>...</think>` in an answer's text.

        `text`: the template itself cuts there; `key`: it takes thoughts by a key alone, and would write a block of its
        own before those in the text, so they are given by the key; None: the marks are text like any other.
        """
        if CLOSES not in self._template:
            return None
        text, thought, *_ = _MARKS
        rendered = self._tried({"role": "assistant", "content": self._content(f"{OPENS}{thought}{CLOSES}{text}")})
        return "key" if rendered.count(CLOSES) > 1 and self.reasoning_key is not None else "text"

    @cached_property
    def call_form(self) -> CallForm | None:
        """The form in which the template writes calls of tools; None where it writes none."""
        name, key, value, _ = _MARKS
        for arguments in ("object", "text"):
            for empty in ("", None):
                form = CallForm(arguments=arguments, empty=empty)
                call = ToolCall(name=name, arguments=json.dumps({key: value}, ensure_ascii=False))
                rendered = self._tried({"role": "assistant", "content": empty, "tool_calls": written([call], form)})
                if all(_shows(rendered, mark) for mark in (name, key, value)):
                    return form
        return None

    def calls(self, calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
        """Return an answer's calls as the template takes them.

        Raises:
            RenderingError: it writes none.
        """
        if self.call_form is None:
            raise RenderingError(
                "the model's chat template does not write calls of tools (tool_calls). Write them into the turn's text "
                "as the model is to write them, or leave them out."
            )
        return written(calls, self.call_form)

    def _tried(self, answer: Mapping[str, Any]) -> str:
        question = {"role": "user", "content": self._content("?")}
        try:
            return self._render([question, answer], add_generation_prompt=False)
        except TEMPLATE_FAULTS:
            return ""


def written(calls: Sequence[ToolCall], form: CallForm) -> list[dict[str, Any]]:
    """Return calls as messages hold them."""
    return [
        {
            **({} if call.id is None else {"id": call.id}),
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": json.loads(call.arguments) if form.arguments == "object" else call.arguments,
            },
        }
        for call in calls
    ]


def told_by(tools: Sequence[Mapping[str, Any]], calls: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return every text that tools and calls, as messages hold them, give the template to write."""
    return [text for value in (*tools, *calls) for text in _texts_in(value)]


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _texts_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts_in(inner)


class Marking:
    """Tools and calls with a mark in the place of everything in them that a template has to write.

    Args:
        others: texts that no mark may stand in.
    """

    def __init__(self, others: Iterable[str]) -> None:
        self._free = free_sentinels(others)
        self._marks: dict[str, str] = {}

    def tools(self, tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Mark the names of functions and of their parameters, and what is said of the functions."""
        return [self._tool(tool) for tool in tools]

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Mark the names of called functions, and the names and values of their arguments."""
        return [
            {**message, "tool_calls": [self._call(call) for call in message["tool_calls"]]}
            if "tool_calls" in message
            else dict(message)
            for message in messages
        ]

    def missing(self, rendered: str) -> list[str]:
        """Return what the template left out, as the row holds it."""
        return [what for mark, what in self._marks.items() if not _shows(rendered, mark)]

    def _tool(self, tool: Mapping[str, Any]) -> dict[str, Any]:
        function = dict(tool["function"])
        for key in ("name", "description"):
            if isinstance(function.get(key), str) and function[key].strip():
                function[key] = self._mark(function[key])
        parameters = function.get("parameters")
        if isinstance(parameters, Mapping) and isinstance(parameters.get("properties"), Mapping):
            named = {self._mark(name): value for name, value in parameters["properties"].items()}
            function["parameters"] = {**parameters, "properties": named}
        return {**tool, "function": function}

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function = call["function"]
        arguments = function["arguments"]
        if isinstance(arguments, str):
            marked: Any = json.dumps(self._inside(json.loads(arguments)), ensure_ascii=False)
        else:
            marked = self._inside(arguments)
        return {**call, "function": {"name": self._mark(function["name"]), "arguments": marked}}

    def _inside(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {self._mark(key): self._inside(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._inside(inner) for inner in value]
        return self._mark(value if isinstance(value, str) else json.dumps(value))

    def _mark(self, what: str) -> str:
        mark = next(self._free)
        self._marks[mark] = what
        return mark


def _shows(rendered: str, mark: str) -> bool:
    return mark in rendered or json.dumps(mark)[1:-1] in rendered


def controls_of(tokenizer: Any, eos_tokens: frozenset[str]) -> re.Pattern[str]:
    """Return what finds a tokenizer's control tokens in a text."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special} | eos_tokens
    return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")
