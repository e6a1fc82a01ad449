"""Texts, answers and turns as a row's columns hold them.

1. Texts and answers of single columns.
2. The turns of a chat as drafts: roles, texts, images, and which answers are trained on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlm_lora.data.columns.answers import AnswerReading
from vlm_lora.data.columns.harmless import holds_nothing
from vlm_lora.data.columns.names import (
    CALL_KEYS,
    CALL_ROLES,
    IMAGE_PARTS,
    REASONING_KEYS,
    ROLES,
    TEXT_PARTS,
    TOOL_KEYS,
    TURN_KEYS,
)
from vlm_lora.data.conversation import Part, Role, Text
from vlm_lora.data.conversations.image_parts import unwrapped
from vlm_lora.data.conversations.image_places import Draft, NextImage, UserText, split_marks, without_marks
from vlm_lora.data.conversations.part_keys import keys_of
from vlm_lora.data.conversations.texts import PARSE, parsed_answer, written_list
from vlm_lora.data.conversations.tools import Result, calls_in, read_calls, read_thoughts, split_calls, split_results
from vlm_lora.data.conversations.unread import read_mark, refuse_unread_keys, says_nothing
from vlm_lora.data.images.values import ImagePlace, is_missing, read_image_value, read_own_size, with_size
from vlm_lora.data.wording import quoted, short
from vlm_lora.errors import DataError


def check_unicode(text: str, what: str) -> None:
    """Refuse what JSON can escape and no encoding can write: tokenizers crash on it.

    Raises:
        DataError: names the character.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} holds half of a surrogate pair at character {error.start} ({text[error.start]!a}), which is no "
            "text. Write the whole character, or leave it out."
        ) from error


MISSING_CELLS = ("nan", "NaN", "None", "<NA>")
"""What a table that was turned into texts has in a cell of CSV for a missing value, as pandas writes it."""


def read_text(value: Any, what: str, *, cell: bool = False) -> str:
    """Return a text or a number as text.

    Args:
        value: what the row holds.
        what: what messages call it.
        cell: whether it is a cell of CSV.

    Raises:
        DataError: nothing, or neither text nor a number.
    """
    if cell and value in MISSING_CELLS:
        raise DataError(
            f"There is no value for {what}: its cell is {value}, as a missing value is written. Leave the row out; "
            "where the text is meant, write the rows as JSON Lines, where each text is taken as it is."
        )
    if isinstance(value, str):
        return value
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    if missing:
        raise DataError(f'There is no value for {what}. JSON writes an empty text as ""; CSV has none.')
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    kind = "true or false" if isinstance(value, bool) else f"of type {type(value).__name__}"
    raise DataError(f"The value of {what} is {kind}. It must be text or a number.")


def read_answers(value: Any, column: str, reading: AnswerReading) -> tuple[str, tuple[str, ...]]:
    """Return the answer to train on and, where the data lists them, all that are accepted.

    Raises:
        DataError: there is none, it is no text, or it is a number without a name where numbers have names.
    """
    what = f"the response ('{column}')"
    if reading.written and isinstance(value, str):
        items = written_list(value)
        if items is None:
            raise DataError(
                f"The cell of {what} is {short(value)}, and most of the first rows' cells are lists of texts. "
                'Write it as one: ["..."].'
            )
        value = items
    if reading.plain and isinstance(value, str) and written_list(value) is not None:
        other = "write the rows as JSON Lines, where" if reading.cells else "put it into a list of its own:"
        raise DataError(
            f"The text of {what} is {short(value)}, a list that is written out, and most of the first rows' are no "
            "lists of texts. Write the one answer, or a real list of accepted answers in JSON Lines; to train on the "
            f"text as it is, {other} [{json.dumps(value, ensure_ascii=False)}] is one answer."
        )
    if reading.parsed and isinstance(value, str):
        answer = parsed_answer(value)
        if answer is None:
            raise DataError(
                f"The text of {what} is no JSON object with {PARSE}, and most of the first rows' texts are."
            )
        return answer, ()
    if not isinstance(value, list | tuple):
        return _read_answer(value, what, reading), ()
    if not value:
        raise DataError(f"The list of accepted answers in '{column}' is empty.")
    accepted = tuple(_read_answer(_answer_in(item, what), what, reading) for item in value)
    for answer in accepted:
        check_unicode(answer, what)
    return accepted[0], accepted


def _answer_in(item: Any, what: str) -> Any:
    """Return the text of one accepted answer, which may be an object (VQAv2: answer, answer_confidence, answer_id)."""
    if not isinstance(item, Mapping):
        return item
    others = [
        k for k, value in item.items() if k != "answer" and not holds_nothing(k, value) and not says_nothing(value)
    ]
    if others:
        raise DataError(
            f"An object in the list of {what} has {quoted(others)}, and only its 'answer' is read. Leave the others "
            "out, or write the answers as texts."
        )
    return item.get("answer")


def _read_answer(value: Any, what: str, reading: AnswerReading) -> str:
    if reading.whole and isinstance(value, float) and value.is_integer():
        return str(int(value))
    names = reading.names
    if not names or not isinstance(value, int) or isinstance(value, bool):
        return read_text(value, what, cell=reading.cells)
    if not 0 <= value < len(names):
        raise DataError(f"The value of {what} is {value}, not one of the {len(names)} names (0 to {len(names) - 1}).")
    return names[value]


_NOT_READ = ("images", "image_urls", "file_id", "file", "video", "audio")
"""Keys of a part that hold images, or other media, in a way that is not read."""


def read_turns(
    turns: Sequence[Mapping[str, Any]], place: ImagePlace | None, ignored: Collection[str] = ()
) -> list[Draft]:
    """Return turns as drafts, in order.

    Args:
        turns: as `parse_turns` returns them.
        ignored: keys of turns and parts that are left out.
        place: where images of parts are found; None where there are none, so that marks and parts for them are left
            out.

    Raises:
        DataError: a turn that cannot be read as it is meant; the message begins with its number and role.
    """
    drafts: list[Draft] = []
    for number, turn in enumerate(without_keys(turns, ignored), start=1):
        role_key, text_key = _find_keys(turn, number)
        name = turn[role_key]
        role = ROLES.get(str(name).casefold())
        if role is None:
            raise DataError(f"Turn {number} has the unknown role {name!r}. Known are {', '.join(ROLES)}.")
        content = turn.get(text_key)
        try:
            refuse_unread_keys(turn, (*TOOL_KEYS, *(_OF_ANSWERS if role == "assistant" else ())))
            if content is None and role == "assistant" and read_calls(turn):
                content = ""
            if role == "user":
                results, content = split_results(content)
                drafts += [_read_result(result, place) for result in results]
                if results and not content:
                    continue
            if content is not None:
                draft = _read_turn({**turn, text_key: content}, role, text_key, place)
                drafts = _with_call(drafts, draft) if str(name).casefold() in CALL_ROLES else [*drafts, draft]
        except DataError as error:
            raise type(error)(f"Turn {number} ({name}): {error}") from error
        if content is None:
            raise DataError(f'Turn {number} ({name}) has no {text_key}. An empty text is written as "".')
    return drafts


def without_keys(turns: Sequence[Mapping[str, Any]], ignored: Collection[str]) -> Sequence[Mapping[str, Any]]:
    """Return turns without some keys, in themselves and in their parts."""
    if not ignored:
        return turns
    return [{key: _without(value, ignored) for key, value in turn.items() if key not in ignored} for turn in turns]


def _without(content: Any, ignored: Collection[str]) -> Any:
    if isinstance(content, list | tuple):
        return [_without(part, ignored) for part in content]
    if isinstance(content, Mapping):
        return {key: value for key, value in content.items() if key not in ignored}
    return content


_OF_ANSWERS = (*REASONING_KEYS, *CALL_KEYS)
"""Keys of an answer that are read beside its text."""


def _with_call(drafts: list[Draft], draft: Draft) -> list[Draft]:
    """Add a turn that is a call; it belongs to an answer right before it."""
    before = drafts[-1] if drafts else None
    if before is None or before.role != "assistant":
        return [*drafts, draft]
    if before.supervised != draft.supervised:
        raise DataError("it calls what the answer before it belongs to, and one of them alone is trained on.")
    return [*drafts[:-1], replace(before, tool_calls=(*before.tool_calls, *draft.tool_calls))]


def _read_turn(turn: Mapping[str, Any], role: Role, text_key: str, place: ImagePlace | None) -> Draft:
    content = turn[text_key]
    wanted = read_mark(turn, role)
    supervised = True if wanted is None else wanted
    tools = next((value for key, value in turn.items() if key.casefold() in TOOL_KEYS and value), None)
    if role == "assistant":
        return replace(_read_answer_turn(turn, content, place, supervised=supervised), tools=tools)
    draft = _read_other(turn, content, role, text_key, place)
    return replace(draft, tools=tools)


def _read_answer_turn(turn: Mapping[str, Any], content: Any, place: ImagePlace | None, *, supervised: bool) -> Draft:
    if str(turn.get("role", turn.get("from"))).casefold() in CALL_ROLES:
        if read_calls(turn):
            raise DataError("its text is a call, and it has calls beside it. Leave one of them out.")
        calls = tuple(calls_in(content, "its text"))
        thoughts, _ = read_thoughts(turn, None)
        return Draft(role="assistant", parts=[], supervised=supervised, reasoning=thoughts, tool_calls=calls)
    thoughts, content = read_thoughts(turn, content)
    calls, content = split_calls(content)
    calls = (*read_calls(turn), *calls)
    parts = list(_read_content(content, place, "assistant", supervised=supervised))
    said = any(isinstance(part, Text) and part.text.strip() for part in parts)
    if thoughts and not calls and not said:
        raise DataError("its thoughts lead to no text and no call: the model would learn to say nothing.")
    return Draft(role="assistant", parts=parts, supervised=supervised, reasoning=thoughts, tool_calls=calls)


def _read_result(result: Result, place: ImagePlace | None) -> Draft:
    parts = list(_read_content(result.content, place, "tool", supervised=False))
    return Draft(role="tool", parts=parts, name=result.name, tool_call_id=result.tool_call_id)


def _read_other(turn: Mapping[str, Any], content: Any, role: Role, text_key: str, place: ImagePlace | None) -> Draft:
    """Read a turn that is no answer."""
    parts = list(_read_content(content, place, role, supervised=False))
    if role == "user" and text_key == "value" and isinstance(content, str):
        # ShareGPT: each mark is a place
        marked = [Text(text=without_marks(content))] if place is None else list(split_marks(content))
        return Draft(role=role, parts=marked)
    if role == "user":
        return Draft(role=role, parts=[UserText(text=p.text) if isinstance(p, Text) else p for p in parts])
    if role == "tool":
        ids = (turn.get(key) for key in ("name", "tool_call_id"))
        name, call = (None if value is None else str(value) for value in ids)
        return Draft(role=role, parts=parts, name=name, tool_call_id=call)
    return Draft(role=role, parts=parts)


def _find_keys(turn: Mapping[str, Any], number: int) -> tuple[str, str]:
    """Return the keys of a turn's role and text: the style that is not null, where Arrow filled in both."""
    present = [keys for keys in TURN_KEYS if keys[0] in turn and keys[1] in turn]
    present = present or [keys for keys in TURN_KEYS if keys[0] in turn]  # calls without a text
    texts = [turn[text] for _, text in present if turn.get(text) is not None]
    if len(texts) == 2 and texts[0] != texts[1]:
        raise DataError(
            f"Turn {number} has two texts that differ: {quoted(text for _, text in present)}. Leave one out."
        )
    return next((keys for keys in present if turn[keys[0]] is not None), present[0])


def _read_content(
    content: Any, place: ImagePlace | None, role: Role, *, supervised: bool
) -> Iterator[Part | NextImage]:
    if isinstance(content, str):
        yield Text(text=content)
        return
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list | tuple):
        yield Text(text=read_text(content, "the content"))
        return
    for part in content:
        if isinstance(part, str):
            yield Text(text=part)
            continue
        if not isinstance(part, Mapping):
            raise DataError(
                f"A part is given as a value of type {type(part).__name__}; a part is an object with a `type`."
            )
        wanted = read_mark(part, role)
        if role == "assistant" and wanted not in (None, supervised):
            raise DataError(
                "a part is marked otherwise than its turn, and an answer is trained on whole or not at all."
            )
        yield from _read_part(part, place)


def _read_part(part: Mapping[str, Any], place: ImagePlace | None) -> Iterator[Part | NextImage]:
    """Read one part: all that it holds, in the order of its keys.

    Keys that are null say nothing (Arrow fills them in). An image is left out without a place.
    """
    given = {key: value for key, value in part.items() if value is not None}
    kind = given.get("type")
    if kind is not None and not isinstance(kind, str):
        raise DataError(f"A part has the type {kind!r}, which is no text.")
    if kind and kind not in (*TEXT_PARTS, *IMAGE_PARTS):
        known = ", ".join((*TEXT_PARTS, *IMAGE_PARTS))
        raise DataError(f"A part has the type {kind!r}. Known are {known}; sound and video are not.")
    _refuse_others(given, kind)
    keys = keys_of(part)
    text, image = keys.text, keys.image
    if kind in TEXT_PARTS and text is None:
        raise DataError(f'A text part has no text; it is written as {{"type": "{kind}", "text": ...}}.')
    if not kind and text is None and image is None and "image" not in given:
        raise DataError(
            f"A part has neither a type nor a text nor an image, but {quoted(given)}. It is written as "
            '{"type": "text", "text": ...} or {"type": "image", "image": ...}.'
        )
    size = read_own_size(given)
    for key in given:
        if key == text:
            yield Text(text=given[key])
        elif key == image and place is not None:
            size = size or (read_own_size(given[key]) if isinstance(given[key], Mapping) else None)
            yield with_size(read_image_value(unwrapped(given[key], given), place), size)
    if image is None and (kind in IMAGE_PARTS or (not kind and text is None)) and place is not None:
        index = given.get("index")
        index = int(index) if isinstance(index, float) and index.is_integer() else index
        yield NextImage(index if isinstance(index, int) else None, size)


def _refuse_others(given: Mapping[str, Any], kind: str | None) -> None:
    """Refuse what a part holds in addition and nobody reads."""
    found = [key for key in _NOT_READ if key in given and not is_missing(given[key])]
    if "image" in given and "image_url" in given and not is_missing(given["image"]):
        found += [] if is_missing(given["image_url"]) else ["image", "image_url"]
    if found:
        raise DataError(
            f"A part{f' of type {kind!r}' if kind else ''} has {quoted(found)}, which is not read there. Write one "
            'part for each text and each image, such as {"type": "image", "image": ...}.'
        )
