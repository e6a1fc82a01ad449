"""What a run may ask about one page, where that varies by epoch: counted draw by draw, or task by task.

A draw depends on (seed, epoch, row, repeat) alone, so that of any epoch can be known before the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from vlm_lora.data.ocr.pages import Page
from vlm_lora.data.ocr.task_answers import PHRASES, Draw, PageReading, TaskSample, ask_about, asked, givable, servable

MOST_DRAWS = 32
"""With more draws of a row than this, its tasks are looked at instead, each with its longest question and answer."""

Ask: TypeAlias = Callable[[Page, PageReading, int], Iterable[TaskSample]]
"""Questions with their answers about a page that is row so-and-so of its files; the first epoch's comes first."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """How often a run draws for each row of a split."""

    epochs: int | None = 1
    """None where nothing says how many there will be (`--max_steps`)."""
    repeats: int = 1
    """How often a row is seen in an epoch, at most."""

    @property
    def counted(self) -> bool:
        """Whether each of the draws is looked at: where they are few, and those of an only epoch in any case."""
        return self.epochs is not None and (self.epochs == 1 or self.epochs * self.repeats <= MOST_DRAWS)

    @property
    def key(self) -> str:
        """What is looked at, for comparison: two spans of one key are looked at alike."""
        return f"{self.epochs} x {self.repeats}" if self.counted else "tasks"

    @property
    def text(self) -> str:
        """What is looked at, in words that follow "is checked:"."""
        if not self.counted:
            return "the longest question of each task that the page can serve"
        times = "the question" if self.repeats == 1 else f"each of the {self.repeats} questions"
        return f"{times} of {'the epoch' if self.epochs == 1 else f'each of the {self.epochs} epochs'}"


ONCE = Span()
"""What evaluation reads, and what all rows that do not vary come to."""


def each_draw(span: Span) -> Ask:
    """Ask what each draw of a counted span asks."""

    def ask(page: Page, reading: PageReading, row: int) -> Iterator[TaskSample]:
        for epoch in range(span.epochs or 1):
            for repeat in range(span.repeats):
                yield ask_about(page, reading, Draw(epoch=epoch, row=row, repeat=repeat))

    return ask


def longest_of_each_task(tokens: Callable[[str], int]) -> Ask:
    """Ask of each task that a page can serve what takes most tokens: the item that is given, and the phrase."""

    def ask(page: Page, reading: PageReading, row: int) -> Iterator[TaskSample]:
        yield ask_about(page, reading, Draw(row=row))
        phrase = max(PHRASES, key=tokens)
        for task in servable(page, reading):
            choices = [asked(page, task, given, phrase, reading.style) for given in givable(page, task)]
            yield max(choices, key=lambda choice: tokens(str(choice.question)) + tokens(str(choice.answer)))

    return ask


def everything(page: Page, reading: PageReading, row: int) -> Iterator[TaskSample]:
    """Ask all that any draw may ask; of a page with many items that is thousands of questions."""
    yield ask_about(page, reading, Draw(row=row))
    for task in servable(page, reading):
        for given in givable(page, task):
            for phrase in PHRASES:
                yield asked(page, task, given, phrase, reading.style)
