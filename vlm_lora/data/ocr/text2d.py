"""A page's text laid out as on the page, rebuilt from boxes where the data has none (`text2d`).

1. Items are put into lines, from top to bottom: an item joins the line above where its height holds the middle of
   that line's first item, or the other way round.
2. One column of the grid is the median width of a character over all items, in pixels.
3. Each item starts at its left edge in columns, counted from the leftmost item; where the one before reaches
   there already, one space parts them.
4. Lines follow each other without empty ones between; spaces at a line's end are left out.

The same boxes give the same text, in whatever order the items come.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from vlm_lora.data.ocr.boxes import Edges
from vlm_lora.data.ocr.pages import Item

WIDEST = 400
"""Columns that the grid has at most; far boxes of tiny letters would else give lines of mere spaces."""


def group_lines(items: Sequence[Item]) -> list[list[Item]]:
    """Return the items by line, lines from top to bottom, each from left to right. Items without a box are left out."""
    boxed = sorted((box[1] + box[3], box, item.text) for item in items if (box := item.box) is not None)
    lines: list[list[tuple[Edges, str]]] = []
    for _, box, text in boxed:
        if lines and _covers(box, lines[-1][0][0]):
            lines[-1].append((box, text))
        else:
            lines.append([(box, text)])
    return [[Item(text=text, box=box) for box, text in sorted(line)] for line in lines]


def join_lines(items: Sequence[Item]) -> str:
    """Return the items' text in reading order: one space within a line, a line break between lines."""
    return "\n".join(" ".join(item.text for item in line) for line in group_lines(items))


def lay_out(items: Sequence[Item]) -> str:
    """Return the items' text on a grid of characters, each at its place on the page.

    Args:
        items: words or lines with their boxes; a line break inside an item counts as a space.
    """
    widths = [(box[2] - box[0]) / len(item.text) for item in items if (box := item.box) is not None and item.text]
    boxes = [item.box for item in items if item.box is not None]
    if not boxes:
        return ""
    left = min(box[0] for box in boxes)
    right = max(box[2] for box in boxes)
    column = max(median(widths) if widths else 1.0, (right - left) / WIDEST, 1e-6)
    return "\n".join(_lay_line(line, left, column) for line in group_lines(items))


def _lay_line(line: Sequence[Item], left: float, column: float) -> str:
    text = ""
    for item in line:
        assert item.box is not None  # group_lines has left the others out
        start = round((item.box[0] - left) / column)
        gap = max(start - len(text), 1 if text else 0)
        text += " " * gap + " ".join(item.text.split())
    return text.rstrip()


def _covers(box: Edges, first: Edges) -> bool:
    """Tell whether either box's height holds the other's middle: they stand on one line."""
    middle, other = (box[1] + box[3]) / 2, (first[1] + first[3]) / 2
    return first[1] <= middle <= first[3] or box[1] <= other <= box[3]
