"""Questions that a user gave for many rows (a flag, a task file): one `<image>` in them is the place of the images.

What a row holds is put into a task's question afterwards, so that a mark in it stays text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from vlm_lora.data.columns.names import PLACEHOLDER
from vlm_lora.data.conversation import ImageRef, Part, Text


@dataclass(frozen=True, kw_only=True)
class PlacedQuestion:
    """A question with the row's images in it; `str()` gives its text."""

    before: str
    after: str

    def __str__(self) -> str:
        return self.before + self.after


Question: TypeAlias = str | PlacedQuestion
"""Text alone has the images before it."""


def read_question(text: str, fill: Callable[[str], str] = str) -> Question:
    """Read a typed question, which has one mark at most.

    Args:
        text: as it was set.
        fill: changes the text on either side of the mark.
    """
    before, mark, after = text.partition(PLACEHOLDER)
    return PlacedQuestion(before=fill(before), after=fill(after)) if mark else fill(text)


def question_parts(question: Question, images: Sequence[ImageRef]) -> tuple[Part, ...]:
    """Return the parts of a user's turn that asks a question about all of a row's images."""
    if isinstance(question, str):
        return (*images, Text(text=question))
    before, after = ([Text(text=text)] if text else [] for text in (question.before, question.after))
    return (*before, *images, *after)
