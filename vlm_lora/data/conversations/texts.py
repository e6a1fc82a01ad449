"""Forms in which texts come: lists written out, chats, images named in texts, questions that a user gave for many rows.

Tables that have no lists write them out by JSON, by Python or by numpy. Of a question in a flag or task file one
`<image>` is the place of the images; what a row holds is put into it afterwards, so that a mark in it stays text.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from vlm_lora.data.columns.names import CALL_KEYS, MARKS, PLACEHOLDER, REASONING_KEYS, ROLES, TURN_KEYS
from vlm_lora.data.conversation import ImageRef, Part, PlacedText, text_part

_TEXT = r"""[uU]?(?:'(?:[^'\\\r\n]|\\.)*'|"(?:[^"\\\r\n]|\\.)*")"""
_SPACE = r"[ \t\r\n]"
_LISTS = tuple(
    re.compile(rf"\[{_SPACE}*{_TEXT}(?:{between}{_TEXT})*{_SPACE}*{end}\]")
    for between, end in ((rf"{_SPACE}*,{_SPACE}*", rf",?{_SPACE}*"), (rf"{_SPACE}+", ""))
)
"""Texts parted by commas, as Python writes them, or all by spaces, as numpy does. Never both: Python reads texts
without a comma between as one."""


def written_list(cell: Any) -> list[str] | None:
    """Return the list of texts that a text writes out (`["14", "15"]`, `['14', '15']`, `['14' '15']`).

    None where it writes none. JSON is tried first: Python reads its escaped slashes and halves of characters otherwise.
    """
    if not isinstance(cell, str) or not cell.lstrip().startswith("["):
        return None
    text = cell.strip()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _as_code(text)
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else None


def _as_code(text: str) -> list[str] | None:
    if not any(form.fullmatch(text) for form in _LISTS):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unknown escapes such as \d
            return [ast.literal_eval(item) for item in re.findall(_TEXT, text)]
    except (ValueError, SyntaxError):
        return None


ASKED_AND_ANSWERED = (
    *(("user", "assistant"), ("human", "assistant"), ("human", "gpt"), ("user", "bot"), ("query", "response")),
    *(("question", "answer"), ("instruction", "output"), ("instruction", "response"), ("prompt", "response")),
)
"""Keys of one exchange as an object: what the user says and what is answered (the cauldron: user, assistant)."""


def parse_turns(value: Any, *, pairs: bool = False) -> list[Mapping[str, Any]] | None:
    """Return a value as a list of turns (also from text, as JSON or Python write one), or None where it is no chat.

    Besides lists of turns it may be a list of exchanges, `[{"user": ..., "assistant": ...}]`, or one object with a list
    for each key of a turn, `{"role": [...], "content": [...]}`, as Arrow stores lists of objects.

    Args:
        value: what a row holds.
        pairs: whether a list of pairs of texts, `[["question", "answer"]]` or `[["user", "question"], ...]`, is one,
            too. Elsewhere it may be anything.
    """
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        value = written_value(value)
    if isinstance(value, Mapping):
        value = _turns_by_key(value)
    if pairs and isinstance(value, list | tuple) and value and all(map(_is_pair, value)):
        if all(pair[0].casefold() in ROLES for pair in value):
            return [{"role": role, "content": text} for role, text in value]
        roles = ("user", "assistant")
        return [{"role": role, "content": text} for pair in value for role, text in zip(roles, pair, strict=True)]
    if not isinstance(value, list | tuple) or not value or not all(isinstance(turn, Mapping) for turn in value):
        return None
    if all(map(is_turn, value)):
        return list(value)
    keys = next((keys for keys in ASKED_AND_ANSWERED if all({*keys} <= turn.keys() for turn in value)), None)
    if keys is None:
        return None
    if any(not {"role", "from", "content", "value", "parts"}.isdisjoint(exchange) for exchange in value):
        return None  # half an exchange and half a turn
    return [turn for exchange in value for turn in _turns_of_exchange(exchange, *keys)]


def is_turn(value: Mapping[str, Any]) -> bool:
    """Tell whether an object is a turn: it has a role, and a text or calls of tools."""
    calls = any(key.casefold() in CALL_KEYS for key in value)
    return any(role in value and (calls or text in value) for role, text in TURN_KEYS)


def written_value(text: str) -> Any:
    """Return the list or object that a text writes out; None where it writes none.

    Tables that have no lists write them out by JSON or by Python.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _written_by_python(text)


def _written_by_python(text: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unknown escapes such as \d
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(text, str) for text in value)


def _turns_of_exchange(exchange: Mapping[str, Any], asked: str, answered: str) -> list[Mapping[str, Any]]:
    """Return the two turns of an exchange.

    Marks of what is trained on, thoughts and calls are the answer's; what else it holds is the question's, so that it
    is read or named there.
    """
    others = {key: value for key, value in exchange.items() if key not in (asked, answered)}
    told = {key: value for key, value in others.items() if key.casefold() in _OF_ANSWERS}
    rest = {key: value for key, value in others.items() if key not in told}
    return [
        {**rest, "role": "user", "content": exchange[asked]},
        {**told, "role": "assistant", "content": exchange[answered]},
    ]


_OF_ANSWERS = (*MARKS, *REASONING_KEYS, *CALL_KEYS)


def _turns_by_key(value: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """Return the turns of an object of lists, which must be equally long; None where it is no such thing."""
    lists = {key: column for key, column in value.items() if isinstance(column, list | tuple)}
    if len(lists) != len(value) or not any({*keys} <= {*lists} for keys in TURN_KEYS):
        return None
    if len({len(column) for column in lists.values()}) != 1:
        return None
    return [dict(zip(lists, turn, strict=True)) for turn in zip(*lists.values(), strict=True)]


OTHER_MARKS = re.compile(
    r"<\|vision_start\|>\s*(?:<\|image_pad\|>)+\s*<\|vision_end\|>|<\|image_pad\|>"  # Qwen-VL's, with its fences
    r"|<[Ii]mage[ _]?(\d{1,3})>|<IMAGE[ _]?(\d{1,3})>|<\|image_(\d{1,3})\|>"  # MMMU, interleaved sets; Phi-3-Vision
    r"|<IMAGE>|<Image>|\[IMG\]|<\|image\|>|<start_of_image>|<image_soft_token>|<image_placeholder>|<IMG_CONTEXT>"
)
"""What other tools write where an image stands; a number counts from 1."""

IMAGE_TAG = re.compile(r"<img>([^<>\r\n]+)</img>")
"""An image that a text names, as Qwen-VL's files do."""


def texts_in(value: Any) -> Iterator[str]:
    """Yield all texts inside a value: a question may be a chat."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from texts_in(inner)


@dataclass(frozen=True, kw_only=True)
class PlacedQuestion:
    """A question with the row's images in it; `str()` gives its text."""

    before: str | PlacedText
    after: str | PlacedText

    def __str__(self) -> str:
        return str(self.before) + str(self.after)


Question: TypeAlias = str | PlacedText | PlacedQuestion
"""Text alone has the images before it."""


def read_question(text: str, fill: Callable[[str], str | PlacedText] = str) -> Question:
    """Read a typed question, which has one mark at most.

    Args:
        text: as it was set.
        fill: changes the text on either side of the mark.
    """
    before, mark, after = text.partition(PLACEHOLDER)
    return PlacedQuestion(before=fill(before), after=fill(after)) if mark else fill(text)


PARSE = "gt_parse"
"""The key of the answer in Donut's JSON, next to the words' places and the like, which Donut does not use either."""


def holds_parse(text: str) -> bool:
    """Tell whether a text is the JSON of an object with an answer for Donut."""
    return parsed_answer(text) is not None


def parsed_answer(text: str) -> str | None:
    """Return the answer in Donut's JSON, as JSON on one line; None where the text is no such thing."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return json.dumps(value[PARSE], ensure_ascii=False) if PARSE in value else None


def question_parts(question: Question, images: Sequence[ImageRef]) -> tuple[Part, ...]:
    """Return the parts of a user's turn that asks a question about all of a row's images."""
    if not isinstance(question, PlacedQuestion):
        return (*images, text_part(question))
    before, after = ([text_part(text)] if text else [] for text in (question.before, question.after))
    return (*before, *images, *after)
