"""One task for one page: which tasks it can serve, the seeded draw, and the question and answer in words.

A draw depends on (seed, epoch, row) alone, so it is the same on any number of workers, ranks and resumptions.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from vlm_lora.data.conversation import Piece, Place, PlacedText, joined_text
from vlm_lora.data.conversations.texts import Question, read_question
from vlm_lora.data.ocr.answer_styles import STYLES, AnswerStyle
from vlm_lora.data.ocr.boxes import Box, as_json, read_box
from vlm_lora.data.ocr.pages import LEVELS, Item, Page
from vlm_lora.data.ocr.tasks import PLACEHOLDER, Task
from vlm_lora.data.ocr.text2d import join_lines, lay_out
from vlm_lora.errors import DataError

PHRASES = (
    "the image",
    "this image",
    "the image",
    "this page",
    "the page shown",
    "the attached scan",
    "the scanned page",
    "this document",
    "the document above",
    "the attached image",
)
"""What `{image}` becomes."""

BLANKS = 8
"""Boxes of which a question about an empty page gives one; the same in all epochs, so that each can be looked at."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What a random choice for a row depends on, in addition to the seed of the run."""

    epoch: int = 0
    row: int = 0
    """Position among all rows of the split's files."""
    repeat: int = 0
    """How often the row came before in the epoch, where a data set is repeated."""

    def generator(self, seed: int) -> random.Random:
        """Return the generator of this draw; text seeds are hashed alike by every Python."""
        return random.Random(f"{seed}/{self.epoch}/{self.row}/{self.repeat}")


@dataclass(frozen=True, kw_only=True)
class PageReading:
    """How a column of pages is turned into questions and answers."""

    column: str
    tasks: tuple[Task, ...]
    seed: int
    style: AnswerStyle = STYLES["bbox_2d"]
    """How answers are written."""
    placed: bool = True
    """Whether boxes become the numbers that `--box_coordinates` asks for; else they are pixels of the stored image."""
    ignored: tuple[str, ...] = ()
    """Keys of pages and their items that are left out."""


class TaskSample(NamedTuple):
    """One question about a page, its answer, and the category of the task that it came from."""

    question: Question
    answer: str | PlacedText
    task: str


def ask_about(page: Page, reading: PageReading, draw: Draw) -> TaskSample:
    """Draw a task for a page and return what it asks.

    The category is drawn uniformly from those that the page can serve, then a task of it, then the item that the
    question gives (if any), then the phrase for the image.

    Raises:
        DataError: the page can serve none of the tasks.
    """
    generator = draw.generator(reading.seed)
    served = servable(page, reading)
    categories = list(dict.fromkeys(task.name for task in served))
    category = generator.choice(categories)
    task = generator.choice([task for task in served if task.name == category])
    given = generator.choice(givable(page, task)) if task.given is not None else None
    return asked(page, task, given, generator.choice(PHRASES), reading.style)


def servable(page: Page, reading: PageReading) -> Sequence[Task]:
    """Return the tasks that a page can serve.

    Raises:
        DataError: there is none.
    """
    served = [task for task in reading.tasks if can_serve(page, task)]
    if not served:
        wanted = ", ".join(
            sorted({f"{task.given or task.among or 'image'} to {task.output}" for task in reading.tasks})
        )
        raise DataError(f"None of the tasks can be asked about this page. It holds {_holding(page)}; wanted: {wanted}.")
    return served


def asked(page: Page, task: Task, given: Item | None, phrase: str, style: AnswerStyle) -> TaskSample:
    """Return a task's question, with the item that it gives and a phrase for the image, and the answer in a style."""
    return TaskSample(_fill(page, task, given, phrase, style), _answer(page, task, given, style), task.name)


def can_serve(page: Page, task: Task) -> bool:
    """Tell whether a page holds what a task gives and asks for; of an empty page, whether its answer is known."""
    if page.is_empty:
        return _is_known_to_be_empty(page, task)
    if task.given is not None:
        return bool(givable(page, task))
    if task.output == "text":
        return page.text is not None or any(page.written(level) for level in page.items)
    if task.output == "text2d":
        return page.text2d is not None or _laid_level(page) is not None
    if task.output == "box":
        return bool(page.boxed(task.among) if task.among else _boxed_level(page))
    level = str(task.level)
    return bool(page.written(level) and (page.boxed(level) or "," not in task.output))


def _is_known_to_be_empty(page: Page, task: Task) -> bool:
    """Tell whether an empty page says that there is nothing of the kind that a task asks for: by that kind's key.

    A page without the key may hold formulas, say, that nobody marked. As a text it is empty whatever its keys are.
    Of text that is not there none can be given.
    """
    level = task.level or task.among
    if not (task.given is None or (task.given == "box" and page.blanks)):
        return False
    if level is not None:
        return level in page.items
    if task.output == "box":
        return bool(page.items)
    return task.given is None or bool(page.items) or page.text is not None or page.text2d is not None


def page_text(page: Page) -> str:
    """Return the whole page's text: as given, else its lines, paragraphs or words in reading order."""
    if page.text is not None:
        return page.text
    for level, between in (("lines", "\n"), ("paragraphs", "\n\n")):
        if page.written(level):
            return between.join(item.text for item in page.items[level])
    words = page.written("words") or page.written("latex")
    return join_lines(words) if all(item.box for item in words) else " ".join(item.text for item in words)


def page_text2d(page: Page) -> str:
    """Return the page's text laid out: as given, else rebuilt from the boxes of its words or lines."""
    if page.text2d is not None:
        return page.text2d
    level = _laid_level(page)
    return lay_out(page.boxed(level)) if level else ""


def _answer(page: Page, task: Task, given: Item | None, style: AnswerStyle) -> str | PlacedText:
    """Return the answer; where there is nothing, an empty text, or `[]` where a list is asked for."""
    with_box = task.output.split(",")[-1] == "box"
    listed = with_box or (task.level is not None and task.given is None and style.json_levels)
    if page.is_empty:
        return as_json([], page.shown) if listed else ""
    if task.given == "box":
        assert given is not None  # only tasks that give nothing come without
        return lay_out([given]) if task.output == "text2d" else given.text
    if with_box:
        level = task.given or task.level or task.among or str(_boxed_level(page))
        items = [item for item in page.boxed(level) if given is None or _reads_alike(item, given)]
        return style.write(items, page.shown, with_text="," in task.output)
    if task.level is not None:
        if style.json_levels:
            return style.write(page.items[task.level], page.shown, with_text=True)
        between = "\n\n" if task.level == "paragraphs" else "\n"
        return between.join(item.text for item in page.items[task.level])
    return page_text2d(page) if task.output == "text2d" else page_text(page)


def _reads_alike(item: Item, given: Item) -> bool:
    """Tell whether an item is among those that a given one's text asks for, whatever the case of its letters."""
    return item.text.strip().casefold() == given.text.strip().casefold()


def givable(page: Page, task: Task) -> Sequence[Item | None]:
    """Return what a question can give: each item with box and text, or None alone where a task gives nothing."""
    if task.given is None:
        return (None,)
    if task.given == "box" and page.is_empty:
        return page.blanks
    level = (task.level or task.among or _boxed_level(page)) if task.given == "box" else task.given
    return [item for item in page.boxed(level) if item.text.strip()] if level else []


def _boxed_level(page: Page) -> str | None:
    return next((level for level in LEVELS if page.boxed(level)), None)


def _laid_level(page: Page) -> str | None:
    """Return the level that `text2d` is rebuilt from."""
    return next((level for level in ("words", "lines") if page.written(level) and page.boxed(level)), None)


def _fill(page: Page, task: Task, given: Item | None, phrase: str, style: AnswerStyle) -> Question:
    """Replace the placeholders in one pass, so that a page's own text is never taken for one, nor for a mark."""
    form = style.form(with_text="," in task.output, placed=page.shown is not None)
    values: dict[str, Piece] = {"image": phrase, "box_format": form}
    if given is not None:
        if given.box is None or page.shown is None:
            values["box"] = json.dumps(given.box)
        else:
            left, top, right, bottom = map(round, given.box)
            values["box"] = Place(numbers=(left, top, right, bottom), size=page.shown)
        values["text"] = given.text

    def fill(text: str) -> str | PlacedText:
        stretches = PLACEHOLDER.split(text)  # every second one is the name of a placeholder
        return joined_text(values[part] if place % 2 else part for place, part in enumerate(stretches))

    return read_question(task.question, fill)


def _holding(page: Page) -> str:
    texts = [key for key, value in (("text", page.text), ("text2d", page.text2d)) if value is not None]
    if page.is_empty:
        return f"nothing to read, under {', '.join((*page.items, *texts)) or 'no key'}"
    levels = [f"{level}{'' if page.boxed(level) else ' without boxes'}" for level in LEVELS if page.items.get(level)]
    return ", ".join([*levels, *texts])


def clipped(page: Page, size: tuple[int, int]) -> Page:
    """Return the page with its boxes rounded to pixels and clipped to the image's width and height.

    Raises:
        DataError: a box lies outside the image or sticks out of it; its level and number are named.
    """
    items = {}
    for level, found in page.items.items():
        kept = []
        for number, item in enumerate(found, start=1):
            try:
                box = None if item.box is None else read_box(list(item.box), "xyxy", size, may_be_flat=True)
                kept.append(replace(item, box=box))
            except DataError as error:
                raise DataError(f"Item {number} of '{level}': {error}") from error
        items[level] = tuple(kept)
    return replace(page, items=items, shown=size)


def with_blanks(page: Page, size: tuple[int, int], generator: random.Random) -> Page:
    """Return an empty page with boxes of the size of a word up to some lines, anywhere on it; any other as it is.

    Args:
        page: the page.
        size: the image's width and height in pixels.
        generator: of the page's row, so that its boxes stay the same.
    """
    if not page.is_empty:
        return page
    return replace(page, blanks=tuple(Item(text="", box=_drawn_box(size, generator)) for _ in range(BLANKS)))


def _drawn_box(size: tuple[int, int], generator: random.Random) -> Box:
    (left, right), (top, bottom) = (
        _drawn_span(side, share, generator) for side, share in zip(size, ((0.05, 0.6), (0.015, 0.1)), strict=True)
    )
    return left, top, right, bottom


def _drawn_span(side: int, share: tuple[float, float], generator: random.Random) -> tuple[int, int]:
    length = max(1, round(generator.uniform(*share) * side))
    start = generator.randint(0, side - length)
    return start, start + length
