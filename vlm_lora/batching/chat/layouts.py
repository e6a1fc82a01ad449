"""Where texts stand in a rendering: what the template writes around them, and what the model must produce there.

Sentinels are private-use characters that hold a text's place while a template or a processor works around it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from vlm_lora.errors import RenderingError

# The upper halves of the supplementary private-use planes: no published tokenizer or template gives these
# characters a meaning. The lower ones are taken: transformers 5 marks text with U+F0000 and U+F0001, and its
# processors do not expand a placeholder behind the first.
_PLANES = (0xF8000, 0x108000)
_PLANE_SIZE = 0x7FFD
FIRST_SENTINEL = chr(_PLANES[0])


def choose_sentinels(texts: Sequence[str], others: Iterable[str] = ()) -> tuple[str, ...]:
    """Return one private-use character per text, none of them in any text, nor in `others`.

    Raises:
        RenderingError: the texts use up the private-use planes.
    """
    found = tuple(islice(free_sentinels((*texts, *others)), len(texts)))
    if len(found) < len(texts):
        raise RenderingError(f"{len(texts)} texts in one conversation are more than can be kept apart.")
    return found


def free_sentinels(texts: Iterable[str]) -> Iterator[str]:
    """Yield private-use characters that are in none of the texts."""
    used = set().union(*map(set, texts))
    codes = (code for plane in _PLANES for code in range(plane, plane + _PLANE_SIZE))
    return (chr(code) for code in codes if chr(code) not in used)


def split_at(rendered: str, sentinels: Sequence[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Split a rendering at its sentinels into the stretches between and the order of the texts.

    >>> split_at("<u>A</u><a>B</a>", ("A", "B"))
    (('<u>', '</u><a>', '</a>'), (0, 1))
    """
    numbers = {sentinel: number for number, sentinel in enumerate(sentinels)}
    literals, order = [""], []
    for piece in re.split("([" + "".join(map(re.escape, sentinels)) + "])", rendered) if sentinels else [rendered]:
        if piece in numbers:
            order.append(numbers[piece])
            literals.append("")
        else:
            literals[-1] += piece
    return tuple(literals), tuple(order)


def common_prefix(left: str, right: str) -> str:
    """Return the longest string that both start with."""
    length = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        length += 1
    return left[:length]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model must produce in one assistant turn: `lead`, the turn's texts with what is between, `tail`."""

    part: int
    """Index of the turn's first text among the conversation's texts: its thoughts, where they are written."""
    last: int | None = None
    """Index of its last text; None where it has one."""
    turn: int
    """Index of the turn."""
    lead: str
    """What the template writes between the generation prompt and the text (` ` after `Assistant:`)."""
    tail: str
    """What it writes after the text, up to and including the first eos token."""
    ended: bool
    """Whether `tail` ends with an eos token."""

    @property
    def parts(self) -> tuple[int, int]:
        """Indices of the first and the last of its texts."""
        return self.part, self.part if self.last is None else self.last


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a template writes around the texts of one shape of conversation."""

    literals: tuple[str, ...]
    """The template's own stretches: one before, between and after the texts."""
    order: tuple[int, ...]
    """Which text stands between `literals[i]` and `literals[i + 1]`. Texts may be left out."""
    answers: tuple[Answer, ...] = ()
    """One per assistant turn that is trained on, in order."""
    empty: int = 0
    """How many empty texts stand behind the conversation's own in its numbering: they mark places alone."""

    def fill(self, texts: Sequence[str]) -> str:
        """Return the rendering with `texts` at their places."""
        filled = [self.literals[0]]
        for index, literal in zip(self.order, self.literals[1:], strict=True):
            filled += (texts[index], literal)
        return "".join(filled)

    def produced(self, answer: Answer, texts: Sequence[str]) -> str:
        """Return what the model must produce in one answer."""
        first, last = map(self.order.index, answer.parts)
        between = (
            self.literals[place] + texts[self.order[place]] if place > first else texts[self.order[place]]
            for place in range(first, last + 1)
        )
        return answer.lead + "".join(between) + answer.tail


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """One conversation, rendered: `layout.fill(texts)` is the string to tokenize."""

    layout: Layout
    texts: tuple[str, ...]
    """The texts as the template wrote them (some templates trim)."""
    sentinels: tuple[str, ...]
    """One private-use character per text that none of the texts contains."""
    marks: tuple[tuple[tuple[int, int], ...], ...] = ()
    """By text, start and end of marks for boxes in it, which the encoder wrote; empty where it wrote none at all."""

    @property
    def aided(self) -> str:
        """The rendering with a sentinel in the place of every text."""
        return self.layout.fill(self.sentinels)


def edited(layout: Layout, texts: Sequence[str], rendered: str) -> tuple[str, ...] | None:
    """Return the texts as a template wrote them that trims or escapes, or None where that does not give `rendered`."""
    found = list(texts)

    def place(index: int, start: int) -> bool:
        literal = layout.literals[index]
        if not rendered.startswith(literal, start):
            return False
        start += len(literal)
        if index == len(layout.order):
            return start == len(rendered)
        part = layout.order[index]
        for candidate in _as_written(texts[part]):
            if rendered.startswith(candidate, start) and place(index + 1, start + len(candidate)):
                found[part] = candidate
                return True
        return False

    return tuple(found) if place(0, 0) else None


def _as_written(text: str) -> Iterable[str]:
    """Return the ways in which templates write a text: as it is, trimmed, or inside the quotes of JSON."""
    ends = (text, text.strip(), text.rstrip(), text.lstrip(), text.strip("\n"), text.rstrip("\n"), text.lstrip("\n"))
    return dict.fromkeys((*ends, json.dumps(text, ensure_ascii=False)[1:-1]))
