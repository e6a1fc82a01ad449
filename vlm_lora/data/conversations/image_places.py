"""Where a row's images stand in its turns: parts that stand for one, and `<image>` in a user's text.

In ShareGPT turns each `<image>` is a place. In any other user text it is one exactly where that gives each image of
the image column one place, decided row by row; it stays text where parts have given each image its place. Any other
number of marks is an error, because a mark that stays in the text of a question about an image teaches nonsense.

Marks of other tools (`<image_1>`, `[IMG]`, `<|image_pad|>`, ...) are read by the same rule, and `<img>PATH</img>` in a
user's text is the image itself, as Qwen-VL's files have it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from vlm_lora.data.columns.names import PLACEHOLDER
from vlm_lora.data.columns.search import NO_PICTURES
from vlm_lora.data.conversation import ImageRef, OwnSize, Part, Role, Text, ToolCall, Turn
from vlm_lora.data.conversations.texts import IMAGE_TAG, OTHER_MARKS
from vlm_lora.data.images.values import ImagePlace, read_image_value, with_size
from vlm_lora.data.wording import counted
from vlm_lora.errors import DataError


class NextImage:
    """A place that the next image (or the one at `index`) of the image column belongs to, shown at its `size`."""

    def __init__(self, index: int | None = None, size: OwnSize | None = None) -> None:
        self.index = index
        self.size = size


@dataclass(frozen=True, kw_only=True)
class UserText:
    """What a user said outside ShareGPT turns: whether its marks are places, the whole row says."""

    text: str


_MARK = re.compile(rf"(?:\r?\n{PLACEHOLDER})+\Z|{PLACEHOLDER}(?:\r?\n)?")


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A turn whose images have no place yet."""

    role: Role
    parts: Sequence[Part | NextImage | UserText]
    supervised: bool = True
    """Of an answer: whether it is trained on."""
    reasoning: str = ""
    """Of an answer: its thoughts."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Of an answer: what it calls."""
    name: str | None = None
    """Of a tool's turn: the function whose result it is."""
    tool_call_id: str | None = None
    """Of a tool's turn: the call whose result it is."""
    tools: Any = None
    """What it tells of tools, as the row holds it."""

    @property
    def text(self) -> str:
        """Its text parts joined without a separator."""
        return "".join(part.text for part in self.parts if isinstance(part, Text | UserText))


_Part: TypeAlias = "Part | NextImage | UserText"


def read_tags(drafts: Sequence[Draft], place: ImagePlace) -> list[Draft]:
    """Put the images that users' texts name as `<img>PATH</img>` where they are named.

    Raises:
        ImageError: what is named is no image.
    """
    return _cut_users(drafts, lambda part: _without_tags(part, place))


def _cut_users(drafts: Sequence[Draft], cut: Callable[[_Part], Iterable[_Part]]) -> list[Draft]:
    """Replace each part of users' turns by what `cut` makes of it."""
    return [
        replace(draft, parts=[piece for part in draft.parts for piece in cut(part)]) if draft.role == "user" else draft
        for draft in drafts
    ]


def _without_tags(part: Part | NextImage | UserText, place: ImagePlace) -> Iterator[Part | NextImage | UserText]:
    if not isinstance(part, Text | UserText) or IMAGE_TAG.search(part.text) is None:
        yield part
        return
    for number, piece in enumerate(IMAGE_TAG.split(part.text)):
        if number % 2:
            yield read_image_value(piece.strip(), place)
        elif piece:
            yield replace(part, text=piece)


_Read: TypeAlias = "tuple[Role, list[Part | NextImage]]"
"""One whose marks are read: each is a place or text."""


def split_marks(text: str) -> Iterator[Text | NextImage]:
    """Cut a text at `<image>`; nothing else is changed, line breaks next to a mark included."""
    for position, stretch in enumerate(text.split(PLACEHOLDER)):
        if position:
            yield NextImage()
        if stretch or not text:
            yield Text(text=stretch)


def without_marks(text: str) -> str:
    """Return a text without its `<image>`, each with its line break: the one behind it, or at the end before it."""
    return _MARK.sub("", text)


def place_images(drafts: Sequence[Draft], images: Sequence[ImageRef], *, typed: bool = False) -> tuple[Turn, ...]:
    """Put the image column's images, in order, where the turns have places for them.

    Turns without any place or image of their own get all images at the start of the first user turn.

    Args:
        drafts: the turns.
        images: the image column's images.
        typed: whether the user said that there are no images, so that a mark is text.

    Raises:
        DataError: places and images that are not equally many.
    """
    turns = _read_marks(drafts if typed else _with_other_marks(drafts, images), images, typed=typed)
    places = [part for _, parts in turns for part in parts if isinstance(part, NextImage)]
    if images and not places and not _has_own(drafts):
        first = next((parts for role, parts in turns if role == "user"), None)
        if first is None:
            raise DataError(f"{counted(len(images), 'image')} and no user turn to put them in.")
        first[:0] = images
        return _finish(turns, {}, drafts)
    if len(places) != len(images):
        raise DataError(
            f"{counted(len(places), 'place')} for images in the turns ({PLACEHOLDER} or image parts without an "
            f"image of their own), and {counted(len(images), 'image')} in the image column. They must be equally many."
        )
    order = [number if place.index is None else place.index for number, place in enumerate(places)]
    if sorted(order) != list(range(len(images))):
        raise DataError(f"The parts' indices {order} do not name each of the {len(images)} images once.")
    return _finish(turns, {id(p): with_size(images[at], p.size) for p, at in zip(places, order, strict=True)}, drafts)


def _with_other_marks(drafts: Sequence[Draft], images: Sequence[ImageRef]) -> Sequence[Draft]:
    """Cut marks of other tools out of users' texts where that gives each image of the column one place.

    Raises:
        DataError: their number is not that of the images which have no other place.
    """
    parts = [part for draft in drafts if draft.role == "user" for part in draft.parts]
    texts = [part.text for part in parts if isinstance(part, Text | UserText)]
    found = [mark for text in texts for mark in OTHER_MARKS.finditer(text)]
    places = sum(isinstance(part, NextImage) for part in parts)
    places += sum(part.text.count(PLACEHOLDER) for part in parts if isinstance(part, UserText))
    if not found or (places == len(images) and (places or _has_own(drafts))):
        return drafts
    numbers = [next((int(n) for n in mark.groups() if n), 0) for mark in found]
    numbered = sorted(numbers) == list(range(1, len(images) + 1))
    if len(found) + places != len(images) or (any(numbers) and not numbered):
        said = ", ".join(dict.fromkeys(mark[0] for mark in found))
        raise DataError(
            f"{counted(len(found), 'mark')} for images in the user's text ({said}), and "
            f"{counted(len(images) - places, 'image')} without a place. Write one for each image, or none (images "
            "then go first). Where it is a word of the text, give "
            f'the images parts: [{{"type": "image"}}, {{"type": "text", "text": ...}}], or type --image_column '
            f"{NO_PICTURES} if all rows are text."
        )
    return _cut_users(drafts, _without_marks)


def _without_marks(part: Part | NextImage | UserText) -> Iterator[Part | NextImage | UserText]:
    if not isinstance(part, Text | UserText):
        yield part
        return
    end = 0
    for mark in OTHER_MARKS.finditer(part.text):
        if mark.start() > end:
            yield replace(part, text=part.text[end : mark.start()])
        number = next((int(n) for n in mark.groups() if n), None)
        yield NextImage(None if number is None else number - 1)
        end = mark.end()
    if end < len(part.text) or not part.text:
        yield replace(part, text=part.text[end:])


def _read_marks(drafts: Sequence[Draft], images: Sequence[ImageRef], *, typed: bool) -> list[_Read]:
    """Return the turns with the marks in user texts cut out as places, or left as text."""
    marks = sum(part.text.count(PLACEHOLDER) for draft in drafts for part in draft.parts if isinstance(part, UserText))
    places = sum(isinstance(part, NextImage) for draft in drafts for part in draft.parts)
    are_places = marks > 0 and places + marks == len(images)
    are_text = typed or (places == len(images) and (places > 0 or _has_own(drafts)))
    if marks and not are_places and not are_text:
        raise DataError(_explain_unequal(marks, places, len(images)))
    return [(draft.role, list(_resolve(draft.parts, cut=are_places))) for draft in drafts]


def _resolve(parts: Sequence[Part | NextImage | UserText], *, cut: bool) -> Iterator[Part | NextImage]:
    for part in parts:
        if not isinstance(part, UserText):
            yield part
        elif cut:
            yield from split_marks(part.text)
        else:
            yield Text(text=part.text)


def _explain_unequal(marks: int, places: int, images: int) -> str:
    given = f"{marks} {PLACEHOLDER} in the user's text" + (f", {places} parts for images" if places else "")
    if not images:
        return (
            f"{given}, and the row has no image. If its images were not found, type --image_column COLUMN; if all "
            f"rows are text and {PLACEHOLDER} is a word of it, type --image_column {NO_PICTURES}; else add the image "
            "or write the word otherwise."
        )
    return (
        f"{given}, and {counted(images, 'image')} in the image column: which {PLACEHOLDER} is an image's place is not "
        "clear. "
        f"Write one for each image, or none (images then go first). Where {PLACEHOLDER} is a word of the text, "
        'give the images parts: [{"type": "image"}, {"type": "text", "text": ...}].'
    )


def _has_own(drafts: Sequence[Draft]) -> bool:
    return any(isinstance(part, ImageRef) for draft in drafts for part in draft.parts)


def _finish(turns: Sequence[_Read], chosen: Mapping[int, ImageRef], drafts: Sequence[Draft]) -> tuple[Turn, ...]:
    return tuple(
        Turn(
            role=role,
            parts=tuple(chosen[id(part)] if isinstance(part, NextImage) else part for part in parts),
            supervised=draft.supervised,
            reasoning=draft.reasoning,
            tool_calls=draft.tool_calls,
            name=draft.name,
            tool_call_id=draft.tool_call_id,
        )
        for (role, parts), draft in zip(turns, drafts, strict=True)
    )
