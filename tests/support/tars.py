"""Small WebDataset tars for tests, written by Python's tarfile and not by the project's own writer, and OCR tasks."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

from support.datasets import draw_chart, encode_png

TASK_COUNTS = {
    ("conditional_detection", "[lines, image]", "box", "give the boxes of {text} in {image}."): 9,
    ("conditional_detection", "[words, image]", "box", "give the boxes of {text} in {image}."): 9,
    ("detection", "[lines, image]", "box", "give the boxes of all lines in {image}."): 6,
    ("detection", "[paragraphs, image]", "box", "give the boxes of all paragraphs in {image}."): 6,
    ("detection", "[latex, image]", "box", "give the boxes of all formulas in {image}."): 6,
    ("localized_reading", "[box, image]", "lines", "give the lines inside {box} in {image}."): 9,
    ("localized_reading", "[box, image]", "paragraphs", "give the paragraphs inside {box} in {image}."): 9,
    ("reading", "image", "[lines, box]", "give each line with its box in {image}."): 9,
    ("reading", "image", "[paragraphs, box]", "give each paragraph with its box in {image}."): 4,
    ("reading", "image", "[latex, box]", "give each formula with its box in {image}."): 7,
    ("reading", "image", "text", "give the text of {image}."): 7,
    ("reading", "image", "text2d", "give the text of {image} as it is laid out."): 5,
}
"""How many questions of each combination the task file of the OCR tool has: 86 in all."""


def page_members(number: int, *, empty: bool = False, dotted: bool = False) -> list[tuple[str, bytes]]:
    """Return JSON and image of one OCR page of two lines, with words, paragraphs and formulas.

    Args:
        number: of the page; no other one gives the same image.
        empty: whether its JSON has the same keys and nothing in them.
        dotted: whether its files are called `NUMBER.ocr.json` and `NUMBER.PNG`.
    """
    lines = [{"text": f"line {n} of {number}", "bbox": [2, 12 * n, 60, 12 * n + 10]} for n in range(1, 3)]
    words = [{"text": "line", "bbox": [2, 12 * n, 20, 12 * n + 10]} for n in range(1, 3)]
    latex = [{"latex": f"x^{{{number}}}", "box": [30, 36, 50, 46]}]
    text: dict[str, object] = {"lines": lines, "words": words, "paragraphs": lines[:1], "latex": latex}
    if empty:
        text = {level: [] for level in text}
    text["text"] = "" if empty else "\n".join(str(line["text"]) for line in lines)
    record = {"text": text, "image": {"width": 64, "height": 48}}
    picture, _, _ = draw_chart(number, (64, 48))
    name = f"{number:05d}{'.ocr' if dotted else ''}.json"
    return [(name, json.dumps(record).encode()), (f"{number:05d}.PNG", encode_png(picture))]


def write_task_file(path: Path) -> Path:
    """Write a task file with the combinations of `TASK_COUNTS`, in words of our own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("task", "input_type", "output_type", "question"))
        for (*row, question), count in TASK_COUNTS.items():
            writer.writerows([*row, f"Variant {number}: {question}"] for number in range(1, count + 1))
    return path


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], *, format: int = tarfile.USTAR_FORMAT) -> Path:
    """Write a tar of the given members, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def chart_members(number: int, *, size: tuple[int, int] = (32, 24)) -> list[tuple[str, bytes]]:
    """Return JSON and image of one sample; no other number gives the same image."""
    picture, question, answer = draw_chart(number, size)
    record = {"question": f"{question} ({number})", "answer": answer, "image": {"width": size[0], "height": size[1]}}
    return [(f"{number:06d}.json", json.dumps(record).encode()), (f"{number:06d}.png", encode_png(picture))]


def write_chart_tar(path: Path, numbers: Iterable[int], *, size: tuple[int, int] = (32, 24)) -> Path:
    """Write a tar of charts, one sample a number."""
    return write_tar(path, [member for number in numbers for member in chart_members(number, size=size)])
