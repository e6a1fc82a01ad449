"""How the answers about OCR pages are written: two styles, as data, and which of them a task file's questions mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vlm_lora.data.conversation import BoxForm, PlacedText
from vlm_lora.data.ocr.boxes import Box, as_json
from vlm_lora.data.ocr.pages import Item

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class AnswerStyle:
    """What an answer with several items of a page looks like."""

    name: str
    box_key: str
    text_first: bool
    """Whether an item's text stands before its box."""
    bare_boxes: bool
    """Whether boxes without texts are a list of lists of four numbers, and not of objects."""
    sorted: bool
    """Whether items stand from top to bottom, then from left to right, by (y1, x1); else in the page's own order."""
    json_levels: bool
    """Whether words, lines, paragraphs and formulas that are asked for as text alone come as JSON too, with their boxes
    where all have one; else each on a line, paragraphs with an empty line between."""
    text: str
    """The style in words, for the explanation of the data."""

    def write(self, items: Sequence[Item], size: tuple[int, int] | None, *, with_text: bool) -> str | PlacedText:
        """Return items as JSON on one line.

        Args:
            items: of one level, their boxes in pixels of the stored image; the text of items without a box stands
                alone.
            size: width and height of that image, where the encoder is to write the boxes as its model counts.
            with_text: whether their texts are asked for in addition to their boxes.
        """
        ordered = items
        if self.sorted and all(item.box is not None for item in items):
            ordered = sorted(items, key=lambda item: (item.box[1], item.box[0]) if item.box else (0, 0))
        if self.bare_boxes and not with_text:
            return as_json([_pixels(item) for item in ordered], size)
        return as_json([self._described(item, with_text=with_text) for item in ordered], size)

    def form(self, *, with_text: bool, placed: bool) -> BoxForm:
        """Return the sentence that asks for what `write` gives.

        Args:
            with_text: whether texts are asked for in addition to boxes.
            placed: whether the encoder writes the boxes as its model counts; else they are pixels.
        """
        bare = self.bare_boxes and not with_text
        return BoxForm(
            named="text" if with_text else None,
            key=None if bare else self.box_key,
            name_first=self.text_first,
            placed=placed,
        )

    def _described(self, item: Item, *, with_text: bool) -> Mapping[str, object]:
        box = {} if item.box is None else {self.box_key: _pixels(item)}
        text = {"text": item.text} if with_text else {}
        return {**text, **box} if self.text_first else {**box, **text}


def _pixels(item: Item) -> Box:
    assert item.box is not None, "of items with boxes alone boxes are written"
    left, top, right, bottom = map(round, item.box)
    return left, top, right, bottom


STYLES: Mapping[str, AnswerStyle] = {
    "bbox": AnswerStyle(
        name="bbox",
        box_key="bbox",
        text_first=True,
        bare_boxes=True,
        sorted=True,
        json_levels=True,
        text='[{"text": ..., "bbox": [x1, y1, x2, y2]}, ...] from top to bottom, boxes alone as [[x1, y1, x2, y2], '
        "...]; words, lines, paragraphs and latex of a page come in JSON too",
    ),
    "bbox_2d": AnswerStyle(
        name="bbox_2d",
        box_key="bbox_2d",
        text_first=False,
        bare_boxes=False,
        sorted=False,
        json_levels=False,
        text='[{"bbox_2d": [x1, y1, x2, y2], "text": ...}, ...] in the order of the page, without "text" where boxes '
        "alone are asked for; words, lines, paragraphs and latex of a page come one on each line",
    ),
}
"""By the values of `--answer_style`: that of the OCR tool whose task files these are, and our own."""


def choose_style(asked: str, questions: Iterable[str], *, from_file: bool) -> tuple[AnswerStyle, str]:
    """Return the style of the answers, and in words by what it was chosen.

    Args:
        asked: `--answer_style`.
        questions: of all tasks. Answers follow what their questions say, so `auto` keeps `bbox_2d` where one names it.
        from_file: whether they come from a file that the user brought.
    """
    if asked != AUTO:
        return STYLES[asked], f"by --answer_style {asked}"
    if not from_file:
        return STYLES["bbox_2d"], "our own tasks ask for it"
    if any("bbox_2d" in question or "{box_format}" in question for question in questions):
        return STYLES["bbox_2d"], "a question of the task file asks for bbox_2d; --answer_style bbox is the OCR tool's"
    return STYLES["bbox"], "the OCR tool's own, because a task file is given; --answer_style bbox_2d is ours"
