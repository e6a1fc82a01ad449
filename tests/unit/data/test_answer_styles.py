"""Answers about OCR pages in the OCR tool's style and in ours, and the tasks that give a box of a named level."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from support.datasets import write_image, write_jsonl
from support.tars import write_task_file
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.columns.annotations import read_pages
from vlm_lora.data.conversation import Part, PlacedText, Text
from vlm_lora.data.dataset import load_splits
from vlm_lora.data.ocr.answer_styles import STYLES
from vlm_lora.data.ocr.pages import read_page
from vlm_lora.data.ocr.task_answers import Draw, PageReading, ask_about, clipped
from vlm_lora.data.ocr.tasks import COLUMNS, OWN_FILE, Task, read_tasks
from vlm_lora.errors import ConfigError, DataError

# In file order neither from top to bottom nor, on one height, from left to right.
WORDS = [
    {"text": "TOTAL DUE", "bbox": [40, 30, 60, 38]},
    {"text": "right", "bbox": [40, 10, 60, 18]},
    {"text": "left", "bbox": [2, 10.2, 20, 18]},
    {"text": "Total due ", "bbox": [2, 30, 20, 38]},
]
PAGE: dict[str, Any] = {
    "words": WORDS,
    "lines": [{"text": "unboxed"}, {"text": "second"}],
    "latex": [{"latex": "x^2", "box": [5, 40, 15, 50]}],
}


def told(task: Task, style: str, page: dict[str, Any] = PAGE, row: int = 0) -> tuple[str, str]:
    reading = PageReading(column="text", tasks=(task,), seed=1, style=STYLES[style])
    asked = ask_about(clipped(read_page(page), (64, 64)), reading, Draw(row=row))
    return str(asked.question), str(asked.answer)


def task(given: str | None, output: str, question: str = "Q", among: str | None = None) -> Task:
    return Task(name="t", given=given, output=output, question=question, among=among)


@pytest.mark.parametrize(
    ("asked", "theirs", "ours"),
    [
        (
            task(None, "words,box"),
            '[{"text": "left", "bbox": [2, 10, 20, 18]}, {"text": "right", "bbox": [40, 10, 60, 18]}, '
            '{"text": "Total due ", "bbox": [2, 30, 20, 38]}, {"text": "TOTAL DUE", "bbox": [40, 30, 60, 38]}]',
            '[{"bbox_2d": [40, 30, 60, 38], "text": "TOTAL DUE"}, {"bbox_2d": [40, 10, 60, 18], "text": "right"}, '
            '{"bbox_2d": [2, 10, 20, 18], "text": "left"}, {"bbox_2d": [2, 30, 20, 38], "text": "Total due "}]',
        ),
        (
            task(None, "box", among="words"),
            "[[2, 10, 20, 18], [40, 10, 60, 18], [2, 30, 20, 38], [40, 30, 60, 38]]",
            '[{"bbox_2d": [40, 30, 60, 38]}, {"bbox_2d": [40, 10, 60, 18]}, {"bbox_2d": [2, 10, 20, 18]}, '
            '{"bbox_2d": [2, 30, 20, 38]}]',
        ),
        (
            task(None, "words"),
            '[{"text": "left", "bbox": [2, 10, 20, 18]}, {"text": "right", "bbox": [40, 10, 60, 18]}, '
            '{"text": "Total due ", "bbox": [2, 30, 20, 38]}, {"text": "TOTAL DUE", "bbox": [40, 30, 60, 38]}]',
            "TOTAL DUE\nright\nleft\nTotal due ",
        ),
        (task(None, "latex"), '[{"text": "x^2", "bbox": [5, 40, 15, 50]}]', "x^2"),
        (task(None, "lines"), '[{"text": "unboxed"}, {"text": "second"}]', "unboxed\nsecond"),
        (task("box", "latex", "{box}"), "x^2", "x^2"),
    ],
)
def test_both_styles(asked: Task, theirs: str, ours: str) -> None:
    assert told(asked, "bbox")[1] == theirs
    assert told(asked, "bbox_2d")[1] == ours


@pytest.mark.parametrize("style", STYLES)
def test_boxes_of_a_given_text_are_found_whatever_the_case_of_its_letters(style: str) -> None:
    found = dict(told(task("words", "box", "{text}"), style, row=row) for row in range(40))
    assert set(found) == {"TOTAL DUE", "right", "left", "Total due "}
    both = json.loads(found["TOTAL DUE"])
    assert found["Total due "] == found["TOTAL DUE"]
    assert len(both) == 2
    assert len(json.loads(found["left"])) == 1, "the control"


@pytest.mark.parametrize(("style", "level"), [("bbox", "[]"), ("bbox_2d", "")])
def test_an_empty_page(style: str, level: str) -> None:
    page = {"lines": [], "text": ""}
    assert told(task(None, "lines"), style, page)[1] == level
    assert told(task(None, "lines,box"), style, page)[1] == "[]"
    assert told(task(None, "text"), style, page)[1] == ""


def write(path: Path, *rows: tuple[str, str, str, str]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([COLUMNS, *rows])
    return path


@pytest.mark.parametrize("inputs", ["[words, image]", "[box, words, image]", "[image, words, box]"])
@pytest.mark.parametrize("output", ["words", "text", "text2d"])
def test_the_box_of_an_item_of_a_named_level_is_given(inputs: str, output: str, tmp_path: Path) -> None:
    (asked,) = read_tasks(write(tmp_path / "t.csv", ("localized_reading", inputs, output, "In {box}?")))
    found = dict(told(asked, "bbox", row=row) for row in range(40))
    assert found["In [2, 10, 20, 18]?"] == "left"
    assert {text.strip() for text in found.values()} == {"left", "right", "TOTAL DUE", "Total due"}, "never of latex"


@pytest.mark.parametrize(
    ("inputs", "output", "question", "said"),
    [
        ("[box, words, image]", "words", "Q", r"has no \{box\}"),
        ("[box, words, image]", "words", "{box} {text}", r"has \{text\} although"),
        ("[box, words, image]", "lines", "{box}", "must be words, text or text2d"),
        ("[box, words, image]", "box", "{box}", "gives a box and output_type box asks for it"),
        ("[words, image]", "words", "Q", "holds {box} and output_type is words"),
        ("[words, image]", "words", "{text}", "must be box or"),
        ("[words, lines, image]", "box", "{text}", "is not known: allowed are"),
        ("[box, words]", "words", "{box}", "is not known: allowed are"),
        ("[box, box, words, image]", "words", "{box}", "is not known: allowed are"),
    ],
)
def test_what_cannot_be_answered_is_refused(inputs: str, output: str, question: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        read_tasks(write(tmp_path / "t.csv", ("a", inputs, output, question)))


def chosen(**settings: Any) -> tuple[str, str]:
    reading, (_, said, *_) = read_pages("text", DataConfig(**settings))
    return reading.style.name, said


def test_the_style_follows_the_task_file_and_is_said(tmp_path: Path) -> None:
    theirs = str(write_task_file(tmp_path / "tasks.csv"))
    name, said = chosen(task_file=theirs)
    assert name == "bbox"
    assert said.startswith('answers: [{"text": ..., "bbox": [x1, y1, x2, y2]}, ...] from top to bottom')
    assert "because a task file is given; --answer_style bbox_2d is ours" in said
    assert chosen()[0] == "bbox_2d"
    assert chosen(task_file=str(OWN_FILE)) == chosen(task_file=str(OWN_FILE), answer_style="auto")
    assert chosen(task_file=str(OWN_FILE))[0] == "bbox_2d", "its questions say so"
    assert chosen(task_file=theirs, answer_style="bbox_2d")[0] == "bbox_2d"
    assert chosen(answer_style="bbox")[1].endswith("(by --answer_style bbox)")
    with pytest.raises(ConfigError, match="--answer_style swift: allowed are auto, bbox, bbox_2d"):
        DataConfig(answer_style="swift")


def test_the_tools_own_boxes_are_pixels_unless_numbers_are_asked_for(tmp_path: Path) -> None:
    file = write_task_file(tmp_path / "tasks.csv")
    write_image(tmp_path / "0.png", seed=0)
    words = [{"text": "a", "bbox": [8, 8, 16, 16]}]
    path = write_jsonl(tmp_path / "pages.jsonl", [{"image": "0.png", "text": {"words": words}}])

    def answer(**settings: Any) -> Part:
        config = DataConfig(
            dataset_name=str(path), task_file=str(file), output_types=("box",), validation_fraction=0, **settings
        )
        train = load_splits(config, need_train=True, need_validation=False).train
        assert train is not None
        return train[0].turns[-1].parts[0]

    assert answer() == Text(text="[[8, 8, 16, 16]]")
    assert isinstance(answer(box_coordinates="per_mille"), PlacedText)
    assert isinstance(answer(answer_style="bbox_2d"), PlacedText)


def test_the_form_of_boxes_is_that_of_the_style() -> None:
    alone, named = (task(None, output, "{box_format}") for output in ("box", "words,box"))
    assert told(alone, "bbox")[0] == "Answer with a JSON list of [x1, y1, x2, y2], in pixels."
    assert told(named, "bbox")[0] == (
        'Answer with a JSON list of {"text": "...", "bbox": [x1, y1, x2, y2]}, in pixels.'
    )
    assert told(alone, "bbox_2d")[0] == 'Answer with a JSON list of {"bbox_2d": [x1, y1, x2, y2]}, in pixels.'
    assert told(named, "bbox_2d")[0] == (
        'Answer with a JSON list of {"bbox_2d": [x1, y1, x2, y2], "text": "..."}, in pixels.'
    )
