"""Texts, answers and turns as a row's columns hold them.

1. Texts and answers of single columns.
2. The turns of a chat as drafts: roles, texts, images, and which answers are trained on.
3. Columns that hold what was said before a row's question. A system text is the first turn. It stands above
   --system_prompt; a row that has a system turn of its own must say the same there. A history's turns come before the
   row's own, and its answers are trained on like any other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlm_lora.data.columns.answers import AnswerReading
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
from vlm_lora.data.conversation import Part, Role, Text, Turn
from vlm_lora.data.conversations.image_places import Draft, NextImage, UserText, split_marks, without_marks
from vlm_lora.data.conversations.texts import is_turn, parse_turns, written_list
from vlm_lora.data.conversations.tools import Result, calls_in, read_calls, read_thoughts, split_calls, split_results
from vlm_lora.data.conversations.unread import read_mark, refuse_other_text, refuse_unread_keys, says_nothing
from vlm_lora.data.formats.rows import Row
from vlm_lora.data.images.values import ImagePlace, is_missing, read_image_value
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


def read_text(value: Any, what: str) -> str:
    """Return a text or a number as text.

    Args:
        value: what the row holds.
        what: what messages call it.

    Raises:
        DataError: nothing, or neither text nor a number.
    """
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
    if not isinstance(value, list | tuple):
        return _read_answer(value, what, reading), ()
    if not value:
        raise DataError(f"The list of accepted answers in '{column}' is empty.")
    given = (item.get("answer") if isinstance(item, Mapping) else item for item in value)
    accepted = tuple(_read_answer(item, what, reading) for item in given)
    for answer in accepted:
        check_unicode(answer, what)
    return accepted[0], accepted


def _read_answer(value: Any, what: str, reading: AnswerReading) -> str:
    if reading.whole and isinstance(value, float) and value.is_integer():
        return str(int(value))
    names = reading.names
    if not names or not isinstance(value, int) or isinstance(value, bool):
        return read_text(value, what)
    if not 0 <= value < len(names):
        raise DataError(f"The value of {what} is {value}, not one of the {len(names)} names (0 to {len(names) - 1}).")
    return names[value]


_NOT_OF_TEXT = ("image", "images", "image_url", "image_urls", "bytes", "base64", "video", "audio")
"""Keys of a text part that would hold another part's content."""
_NOT_OF_IMAGES = ("text", "content", "source", "data", "file", "file_id", "video", "audio")
"""Keys of an image part that would hold another part's content, or an image in a way that is not read."""
_SIZES = ("min_pixels", "max_pixels", "resized_height", "resized_width", "total_pixels")
"""Keys of an image part with a size of its own."""
_TYPELESS = ("text", "image", "image_url")
"""Keys that say what a part without a type is."""


def read_turns(turns: Sequence[Mapping[str, Any]], place: ImagePlace | None) -> list[Draft]:
    """Return turns as drafts, in order.

    Args:
        turns: as `parse_turns` returns them.
        place: where images of parts are found; None where there are none, so that marks and parts for them are left
            out.

    Raises:
        DataError: a turn that cannot be read as it is meant; the message begins with its number and role.
    """
    drafts: list[Draft] = []
    for number, turn in enumerate(turns, start=1):
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
        calls = tuple(calls_in(content, "its text"))
        return Draft(role="assistant", parts=[], supervised=supervised, tool_calls=calls)
    thoughts, content = read_thoughts(turn, content)
    calls, content = split_calls(content)
    calls = (*read_calls(turn), *calls)
    parts = list(_read_content(content, place, "assistant", supervised=supervised))
    if not calls and not any(isinstance(part, Text) and part.text.strip() for part in parts):
        if thoughts:
            raise DataError("its thoughts lead to no text and no call: the model would learn to say nothing.")
        refuse_other_text(turn)
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
    """Read one part; keys that are null say nothing (Arrow fills them in). An image is left out without a place."""
    given = {key: value for key, value in part.items() if value is not None}
    kind = given.get("type")
    if kind:
        yield from _read_typed(given, kind, place)
        return
    # Without a type a part is what its keys hold, in their order.
    shown = [key for key in given if key in _TYPELESS and (key == "text" or not is_missing(given[key]))]
    if len(shown) > 1 and {"image", "image_url"} <= set(shown):
        raise DataError("A part without a type has 'image' and 'image_url'. Write one part for each image.")
    for key in shown or [key for key in given if key in _TYPELESS][:1]:
        rest = {name: value for name, value in given.items() if name == key or name not in _TYPELESS}
        yield from _read_typed(rest, "text" if key == "text" else "image", place)
    if not any(key in _TYPELESS for key in given):
        yield from _read_typed(given, "", place)


def _read_typed(given: Mapping[str, Any], kind: str, place: ImagePlace | None) -> Iterator[Part | NextImage]:
    if kind in TEXT_PARTS:
        _refuse_others(given, kind, _NOT_OF_TEXT)
        text = next((given[key] for key in TEXT_PARTS[kind] if key in given), None)
        if not isinstance(text, str):
            raise DataError(f'A text part has no text; it is written as {{"type": "{kind}", "text": ...}}.')
        yield Text(text=text)
    elif kind in IMAGE_PARTS:
        _refuse_others(given, kind, _NOT_OF_IMAGES)
        sizes = [key for key in _SIZES if key in given]
        if sizes:
            raise DataError(
                f"A part of type {kind!r} has {quoted(sizes)}; an image's own size is not read. Leave it out, and type "
                "--max_pixels or --min_pixels for all images (Qwen-VL's families)."
            )
        if place is None:
            return
        value = next((given[key] for key in IMAGE_PARTS[kind] if given.get(key)), None)
        if isinstance(value, Mapping) and "url" in value:
            value = value["url"]
        if value is not None:
            yield read_image_value(value, place)
        else:
            index = given.get("index")
            yield NextImage(index if isinstance(index, int) else None)
    else:
        known = ", ".join((*TEXT_PARTS, *IMAGE_PARTS))
        raise DataError(f"A part has the type {kind!r}. Known are {known}; sound and video are not.")


def _refuse_others(given: Mapping[str, Any], kind: str, others: Sequence[str]) -> None:
    found = [key for key in others if key in given and not is_missing(given[key])]
    if found:
        raise DataError(
            f"A part of type {kind!r} also has {quoted(found)}, which is not read there. Write one part for each "
            f'text and each image, such as {{"type": "image", "image": ...}}.'
        )


SYSTEM = ("system", "system_prompt", "system_message", "system_instruction")
"""Columns (case does not count) with a row's system text."""
HISTORY = ("history", "chat_history", "conversation_history", "dialog_history", "dialogue_history")
"""Columns with the turns before a row's question."""

_ASKED = ("user", "human", "query", "question", "instruction", "prompt", "input", "q")
_ANSWERED = ("assistant", "gpt", "bot", "model", "response", "answer", "output", "completion", "a")
"""Keys of an earlier question and of its answer."""

_FORMS = (
    'a list of ["question", "answer"], of {"user": ..., "assistant": ...} (also query and response), or of turns with '
    '"role" and "content"'
)


@dataclass(frozen=True, kw_only=True)
class Told:
    """The columns that hold what was said before."""

    system: tuple[str, ...] = ()
    history: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.system, *self.history)

    def explain(self, system_prompt: str | None) -> tuple[str, ...]:
        """Say in lines of text how the columns are read, in addition to what --system_prompt says."""
        lines = []
        if self.system:
            flag = "" if system_prompt is None else "; --system_prompt is for rows without one"
            lines.append(f"system: {quoted(self.system)}, by name: the row's system turn{flag}")
        if self.history:
            lines.append(f"history: {quoted(self.history)}, by name: turns before the row's own")
        return tuple(lines)


def find_told(columns: Iterable[str], taken: Iterable[str]) -> Told:
    """Return the columns that are called as such columns are and are nothing else."""
    others = frozenset(taken)
    free = [column for column in columns if column not in others]
    return Told(
        system=tuple(c for c in free if c.casefold() in SYSTEM),
        history=tuple(c for c in free if c.casefold() in HISTORY),
    )


def system_text(row: Row, told: Told) -> str | None:
    """Return a row's own system text, or None.

    Raises:
        DataError: it is no text, or two columns say different things.
    """
    found: dict[str, str] = {}
    for column in told.system:
        value = row.get(column)
        if says_nothing(value):
            continue
        if not isinstance(value, str):
            raise DataError(
                f"The system text in column '{column}' is {short(value)}. Write it as text, or rename the column "
                "where it is something else."
            )
        found[column] = value
    if len(set(found.values())) > 1:
        raise DataError(f"The columns {quoted(found)} hold two system texts that differ. Leave one empty.")
    return next(iter(found.values()), None)


def with_system(turns: tuple[Turn, ...], text: str | None) -> tuple[Turn, ...]:
    """Put a row's system text before its turns, which may say the same themselves.

    Raises:
        DataError: the turns have another system text.
    """
    own = [turn.text for turn in turns if turn.role == "system"]
    if text is None or text in own:
        return turns
    if own:
        raise DataError(
            f"The row's system text ({short(text)}) and its turns' own ({short(own[0])}) differ. Leave one of them out."
        )
    return (Turn(role="system", parts=(Text(text=text),)), *turns)


def read_history(row: Row, told: Told, place: ImagePlace | None) -> list[Draft]:
    """Return the turns that came before a row's own; none where it has no history.

    Raises:
        DataError: it is not written in a known form, or ends without an answer.
    """
    held = {column: row[column] for column in told.history if not says_nothing(row.get(column))}
    if len(held) > 1:
        raise DataError(f"The columns {quoted(held)} both hold a history. Leave one empty.")
    for column, value in held.items():
        try:
            turns = _turns_of(value)
            drafts = read_turns(turns, place)
            _check_answered(drafts)
        except DataError as error:
            raise type(error)(
                f"The history in column '{column}': {error} Rename the column where it is something else."
            ) from error
        return drafts
    return []


def after_history(history: list[Draft], drafts: list[Draft]) -> list[Draft]:
    """Put a history before a row's own turns, one system turn first.

    Raises:
        DataError: both have a system turn, and they differ.
    """
    if not history or not drafts or drafts[0].role != "system":
        return [*history, *drafts]
    system, *rest = drafts
    if history[0].role != "system":
        return [system, *history, *rest]
    if history[0].text != system.text:
        raise DataError(
            f"The history's system turn ({short(history[0].text)}) and the row's own ({short(system.text)}) differ. "
            "Leave one of them out."
        )
    return [*history, *rest]


def refuse_history(row: Row, told: Told) -> None:
    """Refuse a history where one question of ours is asked of every row.

    Raises:
        DataError: names the column.
    """
    for column in told.history:
        if not says_nothing(row.get(column)):
            raise DataError(
                f"The column '{column}' holds turns before the question, and the question here is one that is set or "
                "made for every row. Leave the column out, or write the question and its answer into columns."
            )


def _turns_of(value: Any) -> Sequence[Mapping[str, Any]]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise DataError(f"it is {short(value)}, which is no JSON. It is written as {_FORMS}.") from None
    turns = parse_turns(value)
    if turns is not None:
        return turns
    if not isinstance(value, list | tuple):
        raise DataError(f"it is {short(value)}. It is written as {_FORMS}.")
    return [turn for number, item in enumerate(value, start=1) for turn in _pair(item, number)]


def _pair(item: Any, number: int) -> list[dict[str, Any]]:
    """Return one earlier question with its answer as turns."""
    if isinstance(item, list | tuple) and len(item) == 2:
        return [{"role": "user", "content": item[0]}, {"role": "assistant", "content": item[1]}]
    if isinstance(item, Mapping):
        given = {key: value for key, value in item.items() if value is not None}
        if is_turn(given):
            return [given]
        asked = [key for key in given if key.casefold() in _ASKED]
        answered = [key for key in given if key.casefold() in _ANSWERED]
        if len(asked) < 2 and len(answered) < 2 and len(asked) + len(answered) == len(given) > 0:
            users = [{"role": "user", "content": given[key]} for key in asked]
            return [*users, *({"role": "assistant", "content": given[key]} for key in answered)]
    raise DataError(f"item {number} is {short(item)}. A history is written as {_FORMS}.")


def _check_answered(drafts: Sequence[Draft]) -> None:
    if not drafts or drafts[-1].role != "assistant":
        raise DataError("it ends without an answer, and the row's own question follows. Answer it, or leave it out.")
