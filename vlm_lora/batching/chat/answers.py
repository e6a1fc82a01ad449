"""What the model must produce in a conversation: in each answer, what stands behind its generation prompt.

Where a finished answer does not begin with its prompt:
1. Whether it may: of an answer that a user's next question follows, templates leave out thoughts, and with them what
   they prompted with. Such an answer is learnt from its text on, as it is written, which is said.
2. Any other must begin with its prompt. An answer without thoughts is written with empty ones, as the template writes
   thoughts, where that does; thoughts inside its text follow the prompt's `<think>`, where that leaves them out.
3. Otherwise what to produce is not defined, and the row is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from vlm_lora.batching.chat.layouts import Answer, Layout, common_prefix
from vlm_lora.batching.chat.slots import CLOSES, OPENS, Chat
from vlm_lora.errors import RenderingError, ThinkingError

Split = Callable[[Chat, bool], Layout]
"""Renders a chat with sentinels, with the generation prompt or without, and cuts it there."""

_EMPTY_BLOCK = re.compile(rf"\s*(?:{OPENS})?\s*(?:{CLOSES})?\s*")


@dataclass(frozen=True, kw_only=True)
class Found:
    """The layout to train on."""

    layout: Layout
    without: Mapping[int, str] = field(default_factory=dict)
    """By number of a text: what its prompt already holds, and is taken off its beginning."""


@dataclass(frozen=True, kw_only=True)
class _Start:
    """Where an answer begins."""

    place: int
    """Index of the literal before its first text."""
    offset: int
    """Where in it the generation prompt ends."""


class _UnpromptedError(Exception):
    """An answer without thoughts that does not begin with its prompt."""

    def __init__(self, number: int, error: ThinkingError) -> None:
        super().__init__(str(error))
        self.number = number
        self.error = error


class AnswerFinder:
    """Finds the answers in layouts of one template.

    Args:
        split: renders and cuts.
        eos_tokens: strings of the tokens at which generation stops.
        takes_thoughts: tells whether the template takes thoughts by a key.
        say: logs a message about the template, once.
    """

    def __init__(
        self, split: Split, *, eos_tokens: frozenset[str], takes_thoughts: Callable[[], bool], say: Callable[..., None]
    ) -> None:
        self._split = split
        self._eos_tokens = eos_tokens
        self._takes_thoughts = takes_thoughts
        self._say = say

    def find(self, chat: Chat, layout: Layout) -> Found:
        """Return the layout with its answers, changed where an answer does not begin with its prompt.

        Args:
            chat: the conversation.
            layout: as the template writes it.

        Raises:
            RenderingError: what the model must produce is not defined.
        """
        filled: list[int] = []
        own = len(chat.slots)
        while True:
            tried = chat.with_thoughts(filled)
            written = self._split(tried, False) if filled else layout
            try:
                found = self._answers(tried, Found(layout=replace(written, empty=len(tried.slots) - own)))
            except _UnpromptedError as missing:
                if missing.number in filled or not self._takes_thoughts():
                    raise missing.error from None
                filled.append(missing.number)
            else:
                return found

    def _answers(self, chat: Chat, found: Found) -> Found:
        bare: list[tuple[_Start, Answer]] = []
        for number, turn in enumerate(chat.turns):
            if not turn.is_answer:
                continue
            if number == 0:
                raise RenderingError(
                    "the conversation begins with an answer, to which nothing leads. Remove that turn, or put the "
                    "user's before it."
                )
            found, start = self._begun(chat, number, found)
            layout = found.layout
            parts = [part for part in layout.order if chat.slots[part].turn == number]
            if parts:
                lead = layout.literals[start.place][start.offset :]
                tail, ended = self._tail(chat, number, parts[-1], layout)
                self._check_unbroken(number, layout, parts)
                last = parts[-1] if len(parts) > 1 else None
                answer = Answer(part=parts[0], last=last, turn=number, lead=lead, tail=tail, ended=ended)
                found = replace(found, layout=replace(layout, answers=(*layout.answers, answer)))
            else:
                last_turn = number == len(chat.turns) - 1
                tail, ended = self._whole(number, layout.literals[start.place][start.offset :], last_turn=last_turn)
                bare.append((start, Answer(part=0, turn=number, lead="", tail=tail, ended=ended)))
        return replace(found, layout=_marked(found.layout, bare, len(chat.slots)))

    def _begun(self, chat: Chat, number: int, found: Found) -> tuple[Found, _Start]:
        """Return where answer `number` begins, in the layout changed so that it begins with its prompt."""
        layout = found.layout
        place = _place_of(chat, number, layout)
        has_text = any(chat.slots[part].turn == number for part in layout.order)
        before = layout.literals[place]
        prompted = self._split(chat.upto(number), True).literals[-1]
        common = common_prefix(before, prompted)
        if len(common) == len(prompted):
            self._check_thoughts(chat, number, layout)
            return found, _Start(place=place, offset=len(common))
        if not has_text:
            common = re.sub(r"<[^<>]*\Z", "", common)  # the prompt's `<think>` and the answer's `<tool_call>`
        rest, lead = prompted[len(common) :], before[len(common) :]
        if chat.is_last(number):
            inserted = _thoughts_behind(rest, chat, number, found, place) if has_text and not lead else None
            if inserted is not None:
                return inserted, _Start(place=place, offset=len(prompted))
            if rest.strip() or lead.strip():
                raise self._unprompted(chat, number, rest, lead)
            self._check_thoughts(chat, number, layout)
        elif has_text and lead.strip() and not _EMPTY_BLOCK.fullmatch(common[-len(OPENS) :] + lead if lead else ""):
            raise ThinkingError(_undefined(rest, lead))
        self._say(
            "The chat template prompts answers with %r, which its finished turns do not contain: there the "
            "supervised tokens start with the answer's text.",
            rest,
        )
        closed = re.match(rf"\s*{CLOSES}\s*", lead)  # of an empty block, which is no part of what is learnt
        start = len(before) if has_text else len(common) + (closed.end() if closed else 0)
        return found, _Start(place=place, offset=start)

    def _unprompted(self, chat: Chat, number: int, rest: str, lead: str) -> Exception:
        if any(slot.kind == "thought" and slot.turn == number for slot in chat.slots):
            cure = (
                "The answer has thoughts, and the prompt leaves no room for them: type --enable_thinking true where "
                "the template reads it, or leave them out."
            )
            return ThinkingError(f"{_undefined(rest, lead)} {cure}")
        cure = (
            f"Give the answer its thoughts ({OPENS}...{CLOSES} at the beginning of its text, also with nothing "
            "inside), or type --enable_thinking false where the template reads it."
        )
        return _UnpromptedError(number, ThinkingError(f"{_undefined(rest, lead)} {cure}"))

    def _check_thoughts(self, chat: Chat, number: int, layout: Layout) -> None:
        """Refuse an answer without its thoughts where no later question explains that they are left out."""
        for part, slot in enumerate(chat.slots):
            if slot.kind == "thought" and slot.turn == number and part not in layout.order and chat.is_last(number):
                raise ThinkingError(
                    f"the chat template leaves out the thoughts of the answer of turn {number}. Leave them out of the "
                    "row, or give the model a chat template that writes them."
                )

    def _tail(self, chat: Chat, number: int, part: int, layout: Layout) -> tuple[str, bool]:
        """Return what follows an answer's last text, up to its first eos token, and whether there is one."""
        after = layout.literals[layout.order.index(part) + 1]
        own = after
        if number < len(chat.turns) - 1:
            shorter = self._split(chat.upto(number + 1), False)
            alone = shorter.literals[shorter.order.index(part) + 1]
            own = common_prefix(after, alone)
            if len(own) < min(len(after), len(alone)):
                own = re.sub(r"<[^<>]*\Z", "", own)  # `<|return|>` alone, `<|end|>` here: neither is half a token
        ends = [own.find(token) + len(token) for token in self._eos_tokens if token in own]
        if ends:
            return own[: min(ends)], True
        # GLM's answers end where the next turn begins: its header is among the eos tokens.
        following = [token for token in self._eos_tokens if after.startswith(token, len(own))]
        return (own + max(following, key=len), True) if following else (own.rstrip(), False)

    def _check_unbroken(self, number: int, layout: Layout, parts: Sequence[int]) -> None:
        between = (layout.literals[layout.order.index(part)] for part in parts[1:])
        broken = [token for literal in between for token in self._eos_tokens if token in literal]
        if broken:
            raise RenderingError(
                f"the chat template writes {broken[0]!r}, at which generation stops, inside the answer of turn "
                f"{number}: what stands behind it can never be produced. Write its thoughts and its text as two rows, "
                "or leave the thoughts out."
            )

    def _whole(self, number: int, written: str, *, last_turn: bool) -> tuple[str, bool]:
        """Return an answer that is no text of the row, calls alone, and whether it ends with an eos token."""
        ends = [written.find(token) + len(token) for token in self._eos_tokens if token in written]
        if not ends and not last_turn:
            raise RenderingError(f"the chat template ends the answer of turn {number} with no eos token.")
        return (written[: min(ends)], True) if ends else (written.rstrip(), False)


def _place_of(chat: Chat, number: int, layout: Layout) -> int:
    """Return the index of the literal in which the header of answer `number` stands.

    Raises:
        RenderingError: texts of other turns stand inside the answer.
    """
    turns = [chat.slots[part].turn for part in layout.order]
    places = [place for place, turn in enumerate(turns) if turn == number]
    if places and places[-1] - places[0] >= len(places):
        raise RenderingError(f"the chat template writes texts of other turns inside the answer of turn {number}.")
    return places[0] if places else max((place + 1 for place, turn in enumerate(turns) if turn < number), default=0)


def _thoughts_behind(rest: str, chat: Chat, number: int, found: Found, place: int) -> Found | None:
    """Write what a prompt ends with before the thoughts of an answer's text; None where it has none, or is no such end.

    Args:
        rest: the prompt's end that the finished answer lacks: `<think>` and white space, or white space alone where the
            template wrote the text's own `<think>`.
        chat: the conversation.
        number: the answer's turn.
        found: the layout so far.
        place: index of the literal before the answer's first text.
    """
    layout = found.layout
    part = next((p for p, slot in enumerate(chat.slots) if slot.turn == number and slot.inline), None)
    if part is None:
        return None
    opened = part in layout.order and chat.slots[part].opening
    if rest.strip() != ("" if opened else OPENS):
        return None
    literals = [*layout.literals]
    literals[place] += rest
    order = [*layout.order]
    if part not in order:
        order.insert(place, part)
        literals.insert(place + 1, CLOSES)
    space = rest.replace(OPENS, "")
    changed = replace(layout, literals=tuple(literals), order=tuple(order))
    return replace(found, layout=changed, without={**found.without, part: space})


def _marked(layout: Layout, bare: list[tuple[_Start, Answer]], parts: int) -> Layout:
    """Put an empty text where each answer begins that has none, so that its place is known after tokenizing."""
    literals, order, answers = [*layout.literals], [*layout.order], [*layout.answers]
    for count, (start, answer) in enumerate(reversed(bare)):
        literal = literals[start.place]
        literals[start.place : start.place + 1] = [literal[: start.offset], literal[start.offset :]]
        order.insert(start.place, parts + count)
        answers.append(replace(answer, part=parts + count))
    return replace(
        layout,
        literals=tuple(literals),
        order=tuple(order),
        answers=tuple(sorted(answers, key=lambda answer: answer.turn)),
        empty=layout.empty + len(bare),
    )


def _undefined(rest: str, lead: str) -> str:
    return (
        f"the chat template prompts an answer with {rest!r} but writes {lead!r} there in a finished turn, so what the "
        "model must produce is not defined."
    )
