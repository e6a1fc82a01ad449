"""Columns that hold what was said before a row's question: system texts and histories.

A system text is the first turn. It stands above --system_prompt; a row that has a system turn of its own must say the
same there. A history's turns come before the row's own, and its answers are trained on like any other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_lora.data.conversation import Text, Turn
from vlm_lora.data.conversations.image_places import Draft
from vlm_lora.data.conversations.texts import is_turn, parse_turns, written_value
from vlm_lora.data.conversations.turns import read_turns
from vlm_lora.data.conversations.unread import says_nothing, unknown_keys
from vlm_lora.data.formats.rows import Row
from vlm_lora.data.images.values import ImagePlace
from vlm_lora.data.wording import quoted, short
from vlm_lora.errors import DataError

SYSTEM = ("system", "system_prompt", "system_message", "system_instruction", "systeminstruction")
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
        found[column] = _one_text(value, column)
    if len(set(found.values())) > 1:
        raise DataError(f"The columns {quoted(found)} hold two system texts that differ. Leave one empty.")
    return next(iter(found.values()), None)


def _one_text(value: Any, column: str) -> str:
    """Return a system text, also one in the parts of a service's request (Bedrock's `system`, Gemini's)."""
    if isinstance(value, Mapping) and not value.keys() - {"role", "parts"}:
        value = value.get("parts")
    parts = value if isinstance(value, list | tuple) else [value]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    odd = any(isinstance(part, Mapping) and [*unknown_keys({"role": "system", "parts": parts})] for part in parts)
    if odd or not all(isinstance(text, str) for text in texts):
        raise DataError(
            f"The system text in column '{column}' is {short(value)}. Write it as text, or rename the column where it "
            "is something else."
        )
    return "".join(map(str, texts))


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


def read_history(row: Row, told: Told, place: ImagePlace | None, ignored: Collection[str] = ()) -> list[Draft]:
    """Return the turns that came before a row's own; none where it has no history.

    Raises:
        DataError: it is not written in a known form, or ends without an answer.
    """
    held = {column: row[column] for column in told.history if not says_nothing(row.get(column))}
    if len(held) > 1:
        raise DataError(f"The columns {quoted(held)} both hold a history. Leave one empty.")
    for column, value in held.items():
        try:
            drafts = read_turns(_turns_of(value), place, ignored)
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
        written = written_value(value)
        if written is None:
            raise DataError(
                f"it is {short(value)}, which is no JSON, nor what Python writes. It is written as {_FORMS}."
            )
        value = written
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
