"""Columns of what was marked in an image (boxes, OCR pages): found from the first rows, and how they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.columns.names import COLUMN_NAMES
from vlm_lora.data.columns.search import ColumnSearch
from vlm_lora.data.formats.rows import Rows, declared_names
from vlm_lora.data.ocr.answer_styles import choose_style
from vlm_lora.data.ocr.boxes import CATEGORY_KEYS, BoxReading, holds_boxes, unread_keys
from vlm_lora.data.ocr.pages import holds_page, unread_of_page
from vlm_lora.data.ocr.task_answers import PageReading
from vlm_lora.data.ocr.tasks import load_tasks
from vlm_lora.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Marked:
    """The columns whose values are boxes or pages, by value alone."""

    boxes: tuple[str, ...]
    pages: tuple[str, ...]

    @classmethod
    def among(cls, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> Marked:
        """Look at the first rows. One odd row does not hide what a column is."""
        return cls(
            boxes=tuple(c for c in columns if any(holds_boxes(row.get(c)) for row in sample)),
            pages=tuple(c for c in columns if any(holds_page(row.get(c), c) for row in sample)),
        )


def refuse_two_answers(
    where: str, marked: Marked, chats: Sequence[str], prompts: Sequence[str], responses: Sequence[str]
) -> None:
    """Refuse marks next to a chat, or next to a question with an answer: either could be meant.

    A question alone next to boxes asks for them; next to a page it would be left out, since tasks bring their own.

    Raises:
        DataError: names both, and the flags that decide.
    """
    column = (*marked.boxes, *marked.pages)[0]
    flag = COLUMN_NAMES["boxes" if marked.boxes else "page"].flag
    others = [f"--messages_column {chat}" for chat in chats]
    if prompts and responses:
        others.append(f"--prompt_column {prompts[0]} --response_column {responses[0]}")
    elif prompts and not marked.boxes:
        others.append(f"--prompt_column {prompts[0]} --response_column COLUMN with what answers it")
    if others:
        raise DataError(
            f"{where} has {'boxes' if marked.boxes else 'OCR pages'} ('{column}') and other columns that could "
            f"be asked and answered. Type {flag} {column}, or {', or '.join(others)}."
        )


def read_boxes(rows: Rows, column: str, config: DataConfig, prompt: str | None) -> tuple[BoxReading, tuple[str, ...]]:
    """Return how a column of boxes is read, and lines that explain it; `prompt` is the column that asks for them."""
    key, declared = (None, ()) if config.box_labels else declared_names(rows.declared, column, CATEGORY_KEYS)
    names = config.box_labels or declared
    source = "by --box_labels" if config.box_labels else "declared by the data"
    reading = BoxReading(
        column=column,
        format=config.box_format,
        names=names,
        numbers=key,
        question=config.box_prompt or None,
        prompt=prompt,
        ignored=config.ignore_keys,
    )
    own = "our own, which says how the model is to count" if reading.question is None else repr(reading.question)
    asked = f"question: {own}" if prompt is None else f"question: column '{prompt}' asks for the boxes"
    named = f"names of categories: {', '.join(names)}, {source}" if names else "categories are named in the rows"
    return reading, (asked, f"boxes are {config.box_format}; {named}", how_boxes_are_written(config))


def unread_marks(search: ColumnSearch, boxes: BoxReading | None, page: PageReading | None) -> Iterator[tuple[str, Any]]:
    """Yield the keys of the first rows' boxes and OCR pages that hold something, with it, and that nobody reads."""
    if boxes is not None:
        for value in search.values(boxes.column):
            yield from unread_keys(value, boxes)
    if page is not None:
        for value in search.values(page.column):
            yield from unread_of_page(value, page.ignored)


def how_boxes_are_written(config: DataConfig) -> str:
    """Say what becomes of boxes, and that those inside a row's texts stay as they are."""
    return (
        f"boxes are written in numbers by --box_coordinates {config.box_coordinates}; numbers inside the data's own "
        "texts and set questions stay as they are"
    )


def read_pages(column: str, config: DataConfig) -> tuple[PageReading, tuple[str, ...]]:
    """Return how a column of OCR pages is read, and lines that explain it.

    Raises:
        DataError: the task file cannot be used.
    """
    path = None if config.task_file is None else Path(config.task_file).expanduser()
    tasks = load_tasks(path, names=config.tasks, outputs=config.output_types)
    counts = Counter(f"{task.name} {task.input} -> {_bracketed(task.output)}" for task in tasks)
    listed = ", ".join(f"{combination} ({count})" for combination, count in counts.items())
    where = config.task_file or "our own file (--task_file brings others)"
    style, by = choose_style(config.answer_style, (task.question for task in tasks), from_file=path is not None)
    # The OCR tool has pixels of the stored image; they become the model's own numbers where that is asked for.
    placed = style.name != "bbox" or config.box_coordinates != "auto"
    reading = PageReading(
        column=column, tasks=tasks, seed=config.task_seed, style=style, placed=placed, ignored=config.ignore_keys
    )
    boxed = any("box" in (task.given, *task.output.split(",")) for task in tasks)
    written = how_boxes_are_written(config) if placed else "boxes are pixels of the stored image (--box_coordinates)"
    return reading, (
        f"tasks: {listed}; {sum(counts.values())} in all, from {where}; drawn by --task_seed {config.task_seed}, epoch "
        "and row",
        f"answers: {style.text} ({by})",
        *([written] if boxed else []),
    )


def _bracketed(output: str) -> str:
    """Write an output type as task files do: `[lines, box]`."""
    return f"[{output.replace(',', ', ')}]" if "," in output else output


_WANTED: Mapping[str, tuple[str, str]] = {
    "boxes": ("boxes", ", or type --boxes_column with the column that holds boxes"),
    "page": ("OCR pages", ", or type --page_column with the column that holds OCR pages"),
    "caption": ("answers without a column of questions", ""),
    "question_answer": ("a question and its answer in columns", ""),
}
"""What a layout reads, and what to type where it was not found."""

FLAGS: Mapping[str, tuple[str, ...]] = {
    "boxes": ("box_format", "box_labels", "box_prompt"),
    "page": ("task_file", "tasks", "output_types", "task_seed", "answer_style"),
    "caption": ("default_prompt",),
    "question_answer": ("context_column",),
}
"""Settings that only one layout reads."""


def refuse_unused(config: DataConfig, layouts: Iterable[str]) -> None:
    """Refuse settings of boxes, OCR pages or captions where no data set of the run holds any.

    Raises:
        ConfigError: names the first such setting and the layouts that were found.
    """
    found = list(dict.fromkeys(layouts))
    untouched = DataConfig()
    for layout, names in FLAGS.items():
        given = [name for name in names if getattr(config, name) != getattr(untouched, name)]
        if given and found and layout not in found:
            what, otherwise = _WANTED[layout]
            raise ConfigError(
                f"--{given[0]} is for {what}, and the data is read as {', '.join(found)}. Leave it out{otherwise}."
            )
