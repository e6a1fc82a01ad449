"""How boxes are spelled in an answer: written so, and read out of what a model writes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vlm_lora.batching.boxes.conventions import BoxConvention, SpellingName, Unit
from vlm_lora.data.conversation import BoxForm, Place
from vlm_lora.errors import RenderingError

Item = tuple[tuple[str, "str | int | Place"], ...]


class Mark(str):
    """Part of a written text that is the model's own mark, a control token where its tokenizer has it as one."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True)
class WrittenBox:
    """A box or point as it stands in a text: numbers as they are written."""

    numbers: tuple[float, ...]
    """Four of a box, two of a point."""
    label: str | None = None
    image: int | None = None
    """Number of its image from 0, where the text says it."""


class Spelling(Protocol):
    """One way to write places; `numbers` are those of `counted`."""

    marks: tuple[str, ...]
    """What it writes around numbers and that decoding must keep."""

    def place(self, numbers: Sequence[int]) -> Iterator[str]:
        """Write a box or point inside a text."""

    def named(self, text: str) -> Iterator[str]:
        """Write what a thing is called."""

    def listed(self, items: Sequence[tuple[Item | Place, Sequence[int]]]) -> Iterator[str]:
        """Write an answer of nothing but boxes; each item comes with its box's numbers."""

    def form(self, unit: Unit, form: BoxForm) -> str:
        """Return the sentence that asks for boxes in this spelling."""

    def read(self, text: str, *, bare: bool) -> Iterator[WrittenBox]:
        """Yield the boxes and points of a text; `bare` also reads lists of numbers without a key or mark."""


_UNITS: Mapping[Unit, str] = {
    "pixels": "in pixels",
    "resized_pixels": "in pixels of the picture as you see it",
    "per_mille": "from 0 to 1000 along the picture's width and height",
    "bins": "from 0 to 1023 along the picture's width and height",
}


class Json:
    """`[{"bbox_2d": [x1, y1, x2, y2], "label": "..."}]`, by the keys that the items bring."""

    marks: tuple[str, ...] = ()

    def place(self, numbers: Sequence[int]) -> Iterator[str]:
        """As `Spelling`."""
        yield json.dumps(list(numbers))

    def named(self, text: str) -> Iterator[str]:
        """As `Spelling`."""
        yield text

    def listed(self, items: Sequence[tuple[Item | Place, Sequence[int]]]) -> Iterator[str]:
        """As `Spelling`."""
        written: list[Any] = []
        for item, numbers in items:
            if isinstance(item, Place):
                written.append(list(numbers))
            else:
                written.append({key: list(numbers) if isinstance(value, Place) else value for key, value in item})
        yield json.dumps(written, ensure_ascii=False)

    def form(self, unit: Unit, form: BoxForm) -> str:
        """As `Spelling`."""
        return form.in_json(_UNITS[unit])

    def read(self, text: str, *, bare: bool) -> Iterator[WrittenBox]:
        """As `Spelling`; of a list that is cut off, the objects that are whole."""
        start, end = text.find("["), text.rfind("]")
        is_list = 0 <= start < end and "{" not in text[:start]
        found = _parsed(text[start : end + 1]) if is_list else None
        if found is None:
            pattern = rf"\{{[^{{}}]*\}}|{_NUMBERS}"
            found = [value for match in re.finditer(pattern, text) if (value := _parsed(match[0])) is not None]
        values = found if isinstance(found, list) and not _is_place(found) else [found]
        for value in values:
            if isinstance(value, Mapping):
                yield from _of_object(value)
            elif bare and _is_place(value):
                yield WrittenBox(numbers=tuple(value))


class QwenMarks:
    """`<|object_ref_start|>label<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>`."""

    marks: tuple[str, ...] = ("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>")

    def place(self, numbers: Sequence[int]) -> Iterator[str]:
        """As `Spelling`."""
        yield Mark("<|box_start|>")
        yield ",".join(f"({x},{y})" for x, y in zip(numbers[::2], numbers[1::2], strict=True))
        yield Mark("<|box_end|>")

    def named(self, text: str) -> Iterator[str]:
        """As `Spelling`."""
        yield Mark("<|object_ref_start|>")
        yield text
        yield Mark("<|object_ref_end|>")

    def listed(self, items: Sequence[tuple[Item | Place, Sequence[int]]]) -> Iterator[str]:
        """As `Spelling`."""
        yield from _one_by_one(self, items, between="")

    def form(self, unit: Unit, form: BoxForm) -> str:
        """As `Spelling`."""
        return _form_of_marks(form)

    def read(self, text: str, *, bare: bool) -> Iterator[WrittenBox]:
        """As `Spelling`."""
        named = r"(?:<\|object_ref_start\|>(?P<label>.*?)<\|object_ref_end\|>\s*)?"
        pair = rf"\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)"
        for match in re.finditer(rf"{named}<\|box_start\|>{pair}(?:\s*,\s*{pair})?<\|box_end\|>", text, re.DOTALL):
            numbers = tuple(float(number) for number in match.groups()[1:] if number is not None)
            yield WrittenBox(numbers=numbers, label=match["label"])


class RefBox:
    """`<ref>label</ref><box>[[x1, y1, x2, y2]]</box>`, one a line."""

    marks: tuple[str, ...] = ("<ref>", "</ref>", "<box>", "</box>")

    def place(self, numbers: Sequence[int]) -> Iterator[str]:
        """As `Spelling`."""
        yield Mark("<box>")
        yield json.dumps([list(numbers)])
        yield Mark("</box>")

    def named(self, text: str) -> Iterator[str]:
        """As `Spelling`."""
        yield Mark("<ref>")
        yield text
        yield Mark("</ref>")

    def listed(self, items: Sequence[tuple[Item | Place, Sequence[int]]]) -> Iterator[str]:
        """As `Spelling`."""
        yield from _one_by_one(self, items, between="\n")

    def form(self, unit: Unit, form: BoxForm) -> str:
        """As `Spelling`."""
        return _form_of_marks(form)

    def read(self, text: str, *, bare: bool) -> Iterator[WrittenBox]:
        """As `Spelling`; one name may have several boxes."""
        for match in re.finditer(r"(?:<ref>(?P<label>.*?)</ref>\s*)?<box>(?P<boxes>.*?)</box>", text, re.DOTALL):
            boxes = _parsed(match["boxes"])
            boxes = [boxes] if _is_place(boxes) else boxes
            for box in boxes if isinstance(boxes, list) else ():
                if _is_place(box):
                    yield WrittenBox(numbers=tuple(box), label=match["label"])


class Loc:
    """`<loc0010><loc0020><loc0100><loc0200> label ; ...`."""

    marks: tuple[str, ...] = tuple(f"<loc{number:04d}>" for number in range(1024))

    def place(self, numbers: Sequence[int]) -> Iterator[str]:
        """As `Spelling`."""
        yield Mark("".join(f"<loc{number:04d}>" for number in numbers))

    def named(self, text: str) -> Iterator[str]:
        """As `Spelling`."""
        yield text

    def listed(self, items: Sequence[tuple[Item | Place, Sequence[int]]]) -> Iterator[str]:
        """As `Spelling`."""
        for number, (item, numbers) in enumerate(items):
            if number:
                yield " ; "
            yield from self.place(numbers)
            label = _label(item)
            if label is not None:
                yield f" {label}"

    def form(self, unit: Unit, form: BoxForm) -> str:
        """As `Spelling`."""
        return _form_of_marks(form)

    def read(self, text: str, *, bare: bool) -> Iterator[WrittenBox]:
        """As `Spelling`."""
        for match in re.finditer(r"((?:<loc\d{4}>){4}|(?:<loc\d{4}>){2})([^;<]*)", text):
            numbers = tuple(float(number) for number in re.findall(r"\d{4}", match[1]))
            yield WrittenBox(numbers=numbers, label=match[2].strip() or None)


SPELLINGS: Mapping[SpellingName, Spelling] = {
    "json": Json(),
    "qwen_marks": QwenMarks(),
    "ref_box": RefBox(),
    "loc": Loc(),
}


def spelling_of(convention: BoxConvention) -> Spelling:
    """Return how a convention's boxes are written and read."""
    return SPELLINGS[convention.spelling]


def _one_by_one(
    spelling: Spelling, items: Sequence[tuple[Item | Place, Sequence[int]]], *, between: str
) -> Iterator[str]:
    for number, (item, numbers) in enumerate(items):
        if number and between:
            yield between
        label = _label(item)
        if label is not None:
            yield from spelling.named(label)
        yield from spelling.place(numbers)


def _form_of_marks(form: BoxForm) -> str:
    names = {"label": "the name and ", "text": "the text and "}
    return f"Answer with {names.get(form.named or '', '')}the box of each."


def _label(item: Item | Place) -> str | None:
    """Return what an item calls its box.

    Raises:
        RenderingError: it says which image, which only JSON has a place for.
    """
    if isinstance(item, Place):
        return None
    values = [value for _, value in item if not isinstance(value, Place)]
    if any(isinstance(value, int) for value in values):
        raise RenderingError(
            "its boxes lie in several images, and this family's own way to write boxes cannot say which. Type "
            "--box_coordinates per_mille, which writes JSON, or give each image a row."
        )
    return next((value for value in values if isinstance(value, str)), None)


_NUMBER = r"-?\d+(?:\.\d+)?"
_NUMBERS = rf"\[\s*{_NUMBER}(?:\s*,\s*{_NUMBER}){{1,3}}\s*\]"
_BOX_KEYS = ("bbox_2d", "bbox", "box", "point_2d", "point")


def _of_object(value: Mapping[str, Any]) -> Iterator[WrittenBox]:
    numbers = next((value[key] for key in _BOX_KEYS if _is_place(value.get(key))), None)
    if numbers is not None:
        label = next((text for text in value.values() if isinstance(text, str)), None)
        image = value.get("image_id")
        known = isinstance(image, int) and not isinstance(image, bool)
        yield WrittenBox(numbers=tuple(numbers), label=label, image=image if known else None)


def _is_place(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) in (2, 4)
        and all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in value)
    )


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
