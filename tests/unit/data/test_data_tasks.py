"""Task files, what a page can serve, and the seeded draw."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from vlm_lora.config.sources import parse
from vlm_lora.data.ocr.pages import Item, Page, read_page
from vlm_lora.data.ocr.task_answers import (
    PHRASES,
    Draw,
    PageReading,
    ask_about,
    can_serve,
    clipped,
    page_text,
    page_text2d,
    with_blanks,
)
from vlm_lora.data.ocr.tasks import COLUMNS, OWN_FILE, Task, load_tasks, read_tasks
from vlm_lora.errors import DataError

LINES = [{"text": "Invoice 7", "bbox": [10, 10, 100, 20]}, {"text": "Total 14", "bbox": [10, 40, 90, 50]}]
WORDS = [
    {"text": "Invoice", "bbox": [10, 10, 80, 20]},
    {"text": "7", "bbox": [90, 10, 100, 20]},
    {"text": "Total", "bbox": [10, 40, 60, 50]},
    {"text": "14", "bbox": [70, 40, 90, 50]},
]
LATEX = [{"latex": "x^2", "box": [5, 60, 30, 70]}, {"latex": "x^2", "box": [5, 80, 30, 90]}]
FULL = {"lines": LINES, "words": WORDS, "paragraphs": LINES, "latex": LATEX, "text": "the text", "text2d": "the  text"}


def write(path: Path, *rows: Sequence[str], header: Sequence[str] = COLUMNS) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def ask(value: Any, *tasks: Task, seed: int = 1, **draw: int) -> tuple[str, str]:
    question, answer, _ = ask_about(read_page(value), PageReading(column="text", tasks=tasks, seed=seed), Draw(**draw))
    return str(question), str(answer)


def task(given: str | None, output: str, question: str = "Q", name: str = "reading") -> Task:
    return Task(name=name, given=given, output=output, question=question)


@pytest.mark.parametrize(
    ("given", "output", "answers"),
    [
        (None, "text", {"the text"}),
        (None, "text2d", {"the  text"}),
        (None, "lines", {"Invoice 7\nTotal 14"}),
        (None, "paragraphs", {"Invoice 7\n\nTotal 14"}),
        (None, "words", {"Invoice\n7\nTotal\n14"}),
        (None, "latex", {"x^2\nx^2"}),
        (None, "box", {'[{"bbox_2d": [10, 10, 100, 20]}, {"bbox_2d": [10, 40, 90, 50]}]'}),
        (
            None,
            "lines,box",
            {
                '[{"bbox_2d": [10, 10, 100, 20], "text": "Invoice 7"}, '
                '{"bbox_2d": [10, 40, 90, 50], "text": "Total 14"}]'
            },
        ),
        ("box", "text", {"Invoice 7", "Total 14"}),
        ("box", "lines", {"Invoice 7", "Total 14"}),
        ("box", "words", {"Invoice", "7", "Total", "14"}),
        ("box", "text2d", {"Invoice 7", "Total 14"}),
        ("lines", "box", {'[{"bbox_2d": [10, 10, 100, 20]}]', '[{"bbox_2d": [10, 40, 90, 50]}]'}),
        ("latex", "box", {'[{"bbox_2d": [5, 60, 30, 70]}, {"bbox_2d": [5, 80, 30, 90]}]'}),
    ],
)
def test_answers_of_each_kind_of_task(given: str | None, output: str, answers: set[str]) -> None:
    found = {ask(FULL, task(given, output), row=row)[1] for row in range(40)}
    assert found == answers


def test_a_question_names_what_it_gives() -> None:
    asked = [ask(FULL, task("box", "text", "In {box} of {image}?"), row=row) for row in range(40)]
    boxes = {json.dumps(item["bbox"]): item["text"] for item in LINES}
    for question, answer in asked:
        box = question.removeprefix("In ").split(" of ")[0]
        assert boxes[box] == answer
        assert question.split(" of ", 1)[1].removesuffix("?") in PHRASES
    assert len({question for question, _ in asked}) > len(PHRASES), "phrases and boxes vary"
    asked = [ask(FULL, task("lines", "box", 'Where is "{text}"?'), row=row) for row in range(40)]
    assert {question for question, _ in asked} == {'Where is "Invoice 7"?', 'Where is "Total 14"?'}


def test_a_pages_own_text_is_never_a_placeholder() -> None:
    page = {"lines": [{"text": "{image} {box} {other}", "bbox": [0, 0, 1, 1]}]}
    assert ask(page, task("lines", "box", "Where is {text}, {unknown}?"))[0] == (
        "Where is {image} {box} {other}, {unknown}?"
    )


def test_the_draw_depends_on_seed_epoch_row_and_repeat_alone() -> None:
    tasks = read_tasks(OWN_FILE)

    def drawn(seed: int = 1, epoch: int = 0, repeat: int = 0) -> list[tuple[str, str]]:
        return [ask(FULL, *tasks, seed=seed, epoch=epoch, row=row, repeat=repeat) for row in range(30)]

    assert drawn() == drawn()
    assert len({json.dumps(found) for found in (drawn(), drawn(seed=2), drawn(epoch=1), drawn(repeat=1))}) == 4


def test_these_are_the_draws() -> None:
    """Another Python, platform or version of a library must not draw others."""
    tasks = [task(None, "text", str(number), name="ab"[number % 2]) for number in range(6)]
    found = "".join(ask(FULL, *tasks, epoch=epoch, row=row)[0] for epoch in range(2) for row in range(20))
    assert found == "3344050353453530202010151311501204335500"


def test_categories_are_drawn_evenly_however_many_tasks_each_has() -> None:
    tasks = [task(None, "text", "rare", name="a"), *(task(None, "text", "often", name="b") for _ in range(9))]
    counts = Counter(ask(FULL, *tasks, row=row)[0] for row in range(2000))
    # Two thousand fair draws lie within 1000 +- 150 (6.7 standard deviations).
    assert 850 < counts["rare"] < 1150


def test_an_empty_page_is_a_negative_sample() -> None:
    empty: list[Any] = [{}, {"text": ""}, {"lines": []}, {"lines": None, "text": " \n"}, {"text": {"lines": []}}]
    for value in empty:
        assert ask(value, task(None, "text")) == ("Q", "")
        assert ask(value, task(None, "text2d"))[1] == ""
        assert not can_serve(read_page(value), task("box", "text")), "its image's size is not known"
        assert not can_serve(read_page(value), task("lines", "box")), "there is no text to ask for"
    with pytest.raises(DataError, match=r"None of the tasks .* It holds nothing to read, under no key; wanted: box to"):
        ask({}, task("box", "text"))


def test_an_empty_page_is_a_negative_sample_of_every_kind_that_it_has_a_key_for() -> None:
    kinds: list[tuple[Task, str]] = [
        (task(None, "lines"), ""),
        (task(None, "lines,box"), "[]"),
        (Task(name="detection", given=None, output="box", question="Q", among="lines"), "[]"),
        (task("box", "lines"), ""),
    ]
    for blank in ([], [{"text": " ", "bbox": [0, 0, 1, 1]}]):
        page = with_blanks(read_page({"lines": blank}), (64, 48), Draw().generator(1))
        others = with_blanks(read_page({"latex": [], "text": ""}), (64, 48), Draw().generator(1))
        for asked, answer in kinds:
            found = ask_about(page, PageReading(column="text", tasks=(asked,), seed=1), Draw())
            assert (found.answer, can_serve(others, asked)) == (answer, False)
    assert all(can_serve(page, t) for t in (task(None, "box"), task("box", "text")))
    assert not can_serve(with_blanks(read_page({}), (64, 48), Draw().generator(1)), task(None, "box"))


def test_boxes_in_which_nothing_is_written_lie_on_the_page_and_are_those_of_its_row() -> None:
    def drawn(row: int, size: tuple[int, int] = (640, 480), seed: int = 1) -> tuple[Item, ...]:
        return with_blanks(read_page({"lines": []}), size, Draw(row=row).generator(seed)).blanks

    assert drawn(3) == drawn(3)
    assert len({drawn(3), drawn(4), drawn(3, seed=2)}) == 3
    for size in ((640, 480), (3, 2), (1, 1)):
        for item in drawn(0, size):
            left, top, right, bottom = item.box or (0, 0, 0, 0)
            assert 0 <= left < right <= size[0]
            assert 0 <= top < bottom <= size[1]
    held = with_blanks(read_page({"lines": LINES}), (640, 480), Draw().generator(1))
    assert held.blanks == (), "a page that holds text gives its own"
    asked = ask_about(
        with_blanks(read_page({"lines": []}), (640, 480), Draw().generator(1)),
        PageReading(column="text", tasks=(task("box", "lines", "In {box}?"),), seed=1),
        Draw(),
    )
    assert str(asked.question) in {f"In {json.dumps(item.box)}?" for item in drawn(0)}


def test_a_blank_text_beside_items_that_hold_text_is_missing() -> None:
    for blank in ("", " \n"):
        page = {"text": blank, "text2d": blank, "words": WORDS}
        assert ask(page, task(None, "text"))[1] == "Invoice 7\nTotal 14"
        assert ask(page, task(None, "text2d"))[1] == "Invoice 7\nTotal 14"
        assert not can_serve(read_page({"text2d": blank, "text": "a"}), task(None, "text2d"))
        assert not can_serve(read_page({"text": blank, "text2d": "a"}), task(None, "text"))
    assert read_page({"text": " a", "words": WORDS}).text == " a", "text that is there stays as it is"
    assert read_page({"text": " ", "lines": [{"text": ""}]}).text == " ", "a page without any text stays as it is"


def test_a_level_without_text_is_not_read() -> None:
    blank = [{"text": "", "bbox": [10, 10, 100, 20]}]
    page = {"lines": blank, "paragraphs": LINES[:1]}
    assert ask(page, task(None, "text"))[1] == "Invoice 7"
    assert not can_serve(read_page({"lines": blank, "words": WORDS[:1]}), task(None, "lines"))
    assert not can_serve(read_page({"lines": blank, "words": WORDS[:1]}), task(None, "lines,box"))
    assert not can_serve(read_page({"lines": blank, "text": "a"}), task(None, "text2d"))
    assert can_serve(read_page({"lines": blank, "text": "a"}), task(None, "box")), "its boxes can be asked for"


def test_a_page_serves_only_what_it_holds() -> None:
    lines_without_boxes = read_page({"lines": [{"text": "a"}]})
    assert can_serve(lines_without_boxes, task(None, "lines"))
    assert can_serve(lines_without_boxes, task(None, "text"))
    for unserved in (task(None, "text2d"), task(None, "box"), task(None, "lines,box"), task("box", "lines")):
        assert not can_serve(lines_without_boxes, unserved)
    only_text = read_page({"text": "a"})
    assert can_serve(only_text, task(None, "text"))
    assert not can_serve(only_text, task(None, "lines"))
    with pytest.raises(DataError, match="It holds lines without boxes; wanted: image to box"):
        ask({"lines": [{"text": "a"}]}, task(None, "box"))


def test_missing_text_is_taken_from_what_is_there() -> None:
    assert page_text(read_page({"lines": LINES, "words": WORDS})) == "Invoice 7\nTotal 14"
    assert page_text(read_page({"paragraphs": LINES})) == "Invoice 7\n\nTotal 14"
    assert page_text(read_page({"words": WORDS[::-1]})) == "Invoice 7\nTotal 14"
    assert page_text2d(read_page({"lines": LINES, "words": WORDS})) == "Invoice 7\nTotal 14"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nonsense", "is no page"),
        (None, "is no page"),
        ({"blocks": []}, "none of the known keys"),
        ({"lines": {"text": "a"}}, "'lines' is"),
        ({"lines": ["a"]}, "Item 1 of 'lines': 'a' is no item"),
        ({"lines": [{"bbox": [0, 0, 1, 1]}]}, "Item 1 of 'lines': its text is None"),
        ({"words": [{"text": "a", "bbox": [0, 0, 1]}]}, "Item 1 of 'words': .* is no box"),
        ({"words": [{"text": "a", "bbox": [5, 0, 1, 9]}]}, "ends before it starts"),
        ({"words": [{"text": "a", "bbox": [0, 0, 1, 1], "box": [0, 0, 2, 2]}]}, "two names of one thing"),
        ({"text": "a", "text2d": 3}, "'text2d' is 3"),
    ],
)
def test_broken_pages_are_named(value: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_page(value)


def test_our_own_tasks_are_the_example_and_cover_every_category() -> None:
    example = Path(__file__).parents[3] / "examples" / "ocr_tasks.csv"
    assert example.read_bytes() == OWN_FILE.read_bytes()
    tasks = load_tasks(example)
    assert {t.name for t in tasks} == {"reading", "detection", "localized_reading", "conditional_detection"}
    assert all(can_serve(Page(items=read_page(FULL).items, text="a", text2d="a"), t) for t in tasks)
    plain = load_tasks(None)
    assert {(t.name, t.given, t.output) for t in plain} == {("reading", None, "text")}
    assert 0 < len(plain) < len(tasks)


def test_tasks_and_output_types_choose(tmp_path: Path) -> None:
    assert {t.name for t in load_tasks(None, names=["detection", "reading"])} == {"detection", "reading"}
    for spelled in ("lines,box", "[lines, box]", "[box, lines]", "['lines', 'box']"):
        assert {t.output for t in load_tasks(None, outputs=[spelled])} == {"lines,box"}
    with pytest.raises(DataError, match=r"--tasks readng: our own tasks has none of that\. Did you mean 'reading'\?"):
        load_tasks(None, names=["readng"])
    with pytest.raises(DataError, match=r"--output_types tables: .* has none of that"):
        load_tasks(None, outputs=["tables"])
    with pytest.raises(DataError, match="no task of our own tasks is of both"):
        load_tasks(None, names=["detection"], outputs=["text"])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (("", "image", "text", "Q"), "its task is empty"),
        (("reading", "image", "text", " "), "its question is empty"),
        (("reading", "pictures", "text", "Q"), "input_type 'pictures' is not known: allowed are image, "),
        (("reading", "[lines]", "text", "Q"), "input_type"),
        (("reading", "[lines, words, image]", "box", "Q {text}"), "input_type"),
        (("reading", "image", "tables", "Q"), "output_type 'tables' is not known: allowed are text, "),
        (("reading", "image", "[lines, words]", "Q"), "output_type"),
        (("x", "[box, image]", "text", "Q"), r"the question has no \{box\}"),
        (("x", "[lines, image]", "box", "Q {box}"), r"the question has no \{text\}"),
        (("x", "image", "text", "Q {text}"), r"the question has \{text\} although"),
        (("reading", "image", "text", "<image>Q<image>"), "the question has 2 <image>, and a page has one image"),
        (("x", "[box, image]", "[lines, box]", "Q {box}"), "gives a box and output_type"),
        (("x", "[lines, image]", "text", "Q {text}"), "must be box or \\[lines, box\\]"),
    ],
)
def test_rows_of_a_task_file_are_checked_and_named(tmp_path: Path, row: Sequence[str], said: str) -> None:
    path = write(tmp_path / "tasks.csv", ("reading", "image", "text", "fine"), row)
    with pytest.raises(DataError, match=rf"--task_file .*tasks\.csv row 1 \(line 3\): .*{said}"):
        load_tasks(path)


def test_task_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_tasks(tmp_path / "none.csv")
    renamed = write(
        tmp_path / "a.csv", ("a", "image", "text", "Q"), header=("task", "input_typ", "output_type", "question")
    )
    with pytest.raises(DataError, match=r"no column 'input_type'\. Did you mean 'input_typ'\?"):
        load_tasks(renamed)
    with pytest.raises(DataError, match="has no rows"):
        load_tasks(write(tmp_path / "b.csv"))


def test_flags_of_other_tools_choose_tasks() -> None:
    words = ["--tasks", "reading", "detection", "--output-types", "text", "lines,box"]
    words += ["--task-file", "mine.csv", "--task_seed", "3"]
    data = parse(words, environ={}).data
    assert (data.tasks, data.output_types) == (("reading", "detection"), ("text", "lines,box"))
    assert (data.task_file, data.task_seed) == ("mine.csv", 3)


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ([63.6, 1.2, 64.0, 9.4], [63, 1, 64, 9]),
        ([-2.4, 1.0, 0.4, 9.0], "sticks out of the image of 64x48 pixels by 2.4"),
        ([63.6, 1.2, 66.4, 9.4], "by 2.4"),
        ([1.5, 1.2, 66.0, 9.4], [2, 1, 64, 9]),
        ([64.0, 1.2, 65.5, 9.4], "[64.0, 1.2, 65.5, 9.4], read as left, top, right, bottom in pixels, lies outside"),
    ],
)
def test_boxes_of_pages_are_rounded_once_and_messages_show_the_given_numbers(given: list[float], whole: Any) -> None:
    page = read_page({"lines": [{"text": "|", "bbox": given}]})
    if isinstance(whole, str):
        with pytest.raises(DataError, match=re.escape(whole)) as caught:
            clipped(page, (64, 48))
        assert f"Item 1 of 'lines': {given}, " in str(caught.value)
        return
    (item,) = clipped(page, (64, 48)).items["lines"]
    assert item.box == tuple(whole)
    assert json.dumps(item.box) == json.dumps(whole), "whole numbers, for questions and answers"
