"""The texts of a conversation that a template puts somewhere: one for each part, and one for an answer's thoughts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from vlm_lora.data.conversation import ImageRef, Part, Text, Turn
from vlm_lora.errors import ThinkingError

OPENS, CLOSES = "<think>", "</think>"
"""What stands around thoughts inside an answer's text."""


Stretch: TypeAlias = tuple[int, int]
"""Start and end in a text."""


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One text."""

    turn: int
    """Index of its turn."""
    kind: Literal["text", "thought"] = "text"
    text: str
    opening: str = ""
    """Of thoughts inside an answer's text: what stands before them there, `<think>` or nothing."""
    inline: bool = False
    """Of thoughts: whether they stand inside the answer's text, and `</think>` behind them."""
    marks: tuple[Stretch, ...] = ()
    """Start and end of marks for boxes in it, which the encoder wrote, not the row."""


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Turns with their texts numbered. A shorter chat keeps the numbers, so that texts are found in both."""

    turns: tuple[Turn, ...]
    slots: tuple[Slot, ...]
    tools: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts, in the order of their numbers."""
        return tuple(slot.text for slot in self.slots)

    @property
    def given(self) -> tuple[str, ...]:
        """What goes to the template beside the texts, written out: tools and calls."""
        calls = (text for turn in self.turns for call in turn.tool_calls for text in (call.name, call.arguments))
        return (*self.tools, *calls)

    @property
    def shape(self) -> object:
        """All that decides what the template writes around the texts."""
        named = {slot.turn for slot in self.slots if slot.kind == "text"}
        turns = tuple(
            (
                *(turn.role, turn.supervised, turn.tool_calls, turn.name, turn.tool_call_id),
                *(isinstance(part, ImageRef) for part in turn.parts),
                None if number in named else turn.text.rpartition(CLOSES)[2],
            )
            for number, turn in enumerate(self.turns)
        )
        return turns, tuple((slot.turn, slot.kind, slot.opening, slot.inline) for slot in self.slots), self.tools

    def upto(self, number: int) -> Chat:
        """Return the turns before turn `number`."""
        return replace(self, turns=self.turns[:number])

    def with_thoughts(self, numbers: Sequence[int]) -> Chat:
        """Return the chat with empty thoughts in some of its answers; they are numbered behind its own texts."""
        return replace(self, slots=(*self.slots, *(Slot(turn=n, kind="thought", text="") for n in numbers)))

    def is_last(self, number: int) -> bool:
        """Tell whether no user asks anything behind turn `number`: templates write the thoughts of such answers."""
        return all(turn.role != "user" for turn in self.turns[number + 1 :])


def slots_of(turns: Sequence[Turn], *, inline: bool, blank: bool = True) -> tuple[Slot, ...]:
    """Return the conversation's texts in order.

    An assistant turn is one text behind its thoughts, if any; of another turn each part is one. An answer without text
    that calls a tool has none: templates write such a call otherwise than one behind a text.

    Args:
        turns: the conversation.
        inline: whether the template cuts answers at `</think>`, so that what stands before is a text of its own.
        blank: whether an answer of nothing but white space is a text, too.

    Raises:
        ThinkingError: an answer has more thoughts than a template would write.
    """
    slots: list[Slot] = []
    for number, turn in enumerate(turns):
        if turn.role == "assistant":
            slots += _of_answer(turn, number, inline=inline, blank=blank)
        else:
            parts = [part for part in turn.parts if not isinstance(part, ImageRef)]
            slots += [Slot(turn=number, text=part.text, marks=_marks_in([part])) for part in parts]
    return tuple(slots)


def _marks_in(parts: Sequence[Part]) -> tuple[Stretch, ...]:
    """Return the marks for boxes in the joined text of some parts."""
    found: list[Stretch] = []
    length = 0
    for part in parts:
        if isinstance(part, Text):
            found += [(length + start, length + end) for start, end in part.controls]
            length += len(part.text)
    return tuple(found)


def marks_of(slots: Sequence[Slot], texts: Sequence[str]) -> tuple[tuple[Stretch, ...], ...]:
    """Return where the marks for boxes stand in texts as a template wrote them: some trim."""
    moved: list[tuple[Stretch, ...]] = []
    for slot, text in zip(slots, texts, strict=False):
        start = max(0, slot.text.find(text))
        moved.append(tuple((first - start, last - start) for first, last in slot.marks))
    return (*moved, *((),) * (len(texts) - len(moved)))  # behind them are thoughts that the template writes empty


def _of_answer(turn: Turn, number: int, *, inline: bool, blank: bool) -> list[Slot]:
    text, thoughts = turn.text, []
    marks = _marks_in(turn.parts)
    if turn.reasoning.strip():
        thoughts = [Slot(turn=number, kind="thought", text=turn.reasoning)]
    if inline and CLOSES in text:
        before, _, text = text.partition(CLOSES)
        shift = len(before) + len(CLOSES)
        marks = tuple((start - shift, end - shift) for start, end in marks if start >= shift)
        left, opening, thought = before.rpartition(OPENS)
        if thoughts or left.strip() or CLOSES in text:
            raise ThinkingError(
                f"the answer of turn {number} has "
                + ("thoughts in its text and others beside it" if thoughts else "a text before or between its thoughts")
                + f", and the chat template writes only what one {OPENS}...{CLOSES} at its beginning holds. Leave the "
                "rest out."
            )
        thoughts = [Slot(turn=number, kind="thought", text=thought, opening=opening, inline=True)]
    if not text.strip() and (turn.tool_calls or not blank):
        return thoughts
    return [*thoughts, Slot(turn=number, text=text, marks=marks)]
