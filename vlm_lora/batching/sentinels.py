"""Private-use characters that hold a text's place while a template or a processor works around it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlm_lora.data.conversation import ImageRef, Turn
from vlm_lora.errors import RenderingError

# The upper halves of the supplementary private-use planes: no published tokenizer or template gives these
# characters a meaning. The lower ones are taken: transformers 5 marks text with U+F0000 and U+F0001, and its
# processors do not expand a placeholder behind the first.
_PLANES = (0xF8000, 0x108000)
_PLANE_SIZE = 0x7FFD
FIRST_SENTINEL = chr(_PLANES[0])


def texts_of(turns: Sequence[Turn]) -> tuple[str, ...]:
    """Return the conversation's texts in order: an assistant turn is one text, other turns one per part."""
    texts: list[str] = []
    for turn in turns:
        if turn.role == "assistant":
            texts.append(turn.text)
        else:
            texts += [part.text for part in turn.parts if not isinstance(part, ImageRef)]
    return tuple(texts)


def choose_sentinels(texts: Sequence[str]) -> tuple[str, ...]:
    """Return one private-use character per text, none of them in any text.

    Raises:
        RenderingError: the texts use up the private-use planes.
    """
    used = set().union(*map(set, texts)) if texts else set()
    free: list[str] = []
    for plane in _PLANES:
        for code in range(plane, plane + _PLANE_SIZE):
            if len(free) == len(texts):
                return tuple(free)
            if chr(code) not in used:
                free.append(chr(code))
    raise RenderingError(f"{len(texts)} texts in one conversation are more than can be kept apart.")


def prompt_turns(turns: Sequence[Turn]) -> Sequence[Turn]:
    """Return the turns before the last assistant turn that is trained on; all of them where there is none."""
    answers = [number for number, turn in enumerate(turns) if turn.is_answer]
    return turns[: answers[-1]] if answers else turns


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
