"""Tasks that name a level and give none of its items: all boxes of that level are asked for."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from support.tars import TASK_COUNTS, write_task_file
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.columns.annotations import read_pages
from vlm_lora.data.ocr.pages import read_page
from vlm_lora.data.ocr.task_answers import PHRASES, Draw, PageReading, ask_about, can_serve
from vlm_lora.data.ocr.tasks import COLUMNS, Task, load_tasks, read_tasks
from vlm_lora.errors import DataError

LINES = [{"text": "Sum 14", "bbox": [1, 2, 30, 12]}, {"text": "Sum 15", "bbox": [1, 22, 30, 32]}]
LATEX = [{"text": "x^2", "bbox": [5, 40, 15, 50]}]
BOXES = {
    "lines": '[{"bbox_2d": [1, 2, 30, 12]}, {"bbox_2d": [1, 22, 30, 32]}]',
    "latex": '[{"bbox_2d": [5, 40, 15, 50]}]',
}


def write(path: Path, *rows: tuple[str, str, str, str]) -> tuple[Task, ...]:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([COLUMNS, *rows])
    return read_tasks(path)


def told(page: dict[str, Any], *tasks: Task) -> tuple[str, str]:
    question, answer, _ = ask_about(read_page(page), PageReading(column="text", tasks=tasks, seed=1), Draw())
    return str(question), str(answer)


@pytest.mark.parametrize("level", ["lines", "latex"])
def test_all_boxes_of_the_level_are_the_answer(level: str, tmp_path: Path) -> None:
    (task,) = write(tmp_path / "t.csv", ("detection", f"[{level}, image]", "box", "Boxes of each in {image}?"))
    question, answer = told({"lines": LINES, "latex": LATEX}, task)
    assert answer == BOXES[level]
    assert question.removeprefix("Boxes of each in ").removesuffix("?") in PHRASES
    assert answer != BOXES["lines" if level == "latex" else "latex"], "the control"


def test_a_level_with_its_boxes_is_told_with_its_texts(tmp_path: Path) -> None:
    (task,) = write(tmp_path / "t.csv", ("detection", "[image, latex]", "[latex, box]", "Each?"))
    assert told({"latex": LATEX}, task)[1] == '[{"bbox_2d": [5, 40, 15, 50], "text": "x^2"}]'


def test_a_page_without_boxes_of_the_level_is_not_asked(tmp_path: Path) -> None:
    task, plain = write(tmp_path / "t.csv", ("a", "[words, image]", "box", "All?"), ("b", "image", "text", "Read."))
    pages: list[dict[str, Any]] = [{"lines": LINES}, {"lines": LINES, "words": [{"text": "Sum"}]}]
    for page in pages:
        assert not can_serve(read_page(page), task)
        assert told(page, task, plain)[0] == "Read."
        with pytest.raises(DataError, match=r"It holds lines.*wanted: words to box"):
            told(page, task)
    assert told({"words": []}, task) == ("All?", "[]"), "a page without text has none of them"
    assert not can_serve(read_page({"lines": []}), task), "nobody said anything about its words"


def test_a_question_that_gives_a_text_still_gives_one(tmp_path: Path) -> None:
    (task,) = write(tmp_path / "t.csv", ("detection", "[lines, image]", "box", "Where is {text}?"))
    assert told({"lines": LINES}, task) in (
        ("Where is Sum 14?", '[{"bbox_2d": [1, 2, 30, 12]}]'),
        ("Where is Sum 15?", '[{"bbox_2d": [1, 22, 30, 32]}]'),
    )
    with pytest.raises(DataError, match=r"row 0 \(line 2\): the question has no \{text\}"):
        write(tmp_path / "t.csv", ("detection", "[lines, image]", "box", "Where is {box}?"))


def test_the_whole_task_file_of_the_ocr_tool_is_read(tmp_path: Path) -> None:
    tasks = load_tasks(write_task_file(tmp_path / "t.csv"))
    counts = Counter((task.name, task.given, task.among, task.output) for task in tasks)
    assert sum(counts.values()) == sum(TASK_COUNTS.values()) == 86
    assert [counts["detection", None, level, "box"] for level in ("lines", "paragraphs", "latex")] == [6, 6, 6]
    assert counts["conditional_detection", "words", None, "box"] == 9
    assert len(load_tasks(tmp_path / "t.csv", outputs=["box"])) == 36


def test_the_number_of_questions_of_each_combination_is_shown(tmp_path: Path) -> None:
    file = write_task_file(tmp_path / "t.csv")
    _, (said, *_) = read_pages("text", DataConfig(task_file=str(file)))
    for (name, given, output, _), count in TASK_COUNTS.items():
        assert f"{name} {given} -> {output} ({count})" in said
    assert "; 86 in all, from " in said
    _, (said, *_) = read_pages("text", DataConfig(task_file=str(file), output_types=("box",)))
    assert "; 36 in all, from " in said
    assert "text2d" not in said
