"""The one value that every data layout becomes before anything else sees it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from PIL.Image import Image

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, kw_only=True)
class Url:
    """An http or https address, fetched when its image is loaded and not before."""

    text: str


ImageSource: TypeAlias = "Path | bytes | Image | Url"
"""Where an image's pixels come from: a file under the image root, encoded bytes, an image, or a URL."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A stretch of text exactly as the row holds it; it is never interpreted as control tokens."""

    text: str
    controls: tuple[tuple[int, int], ...] = ()
    """Start and end of the marks for boxes in it that the encoder wrote, not the row: those are control tokens."""


@dataclass(frozen=True, kw_only=True)
class OwnSize:
    """How large a row wants one image to be shown, as Qwen-VL's parts say it; None where it does not say."""

    min_pixels: int | None = None
    max_pixels: int | None = None
    resized_height: int | None = None
    """In pixels, with `resized_width`."""
    resized_width: int | None = None


@dataclass(frozen=True, kw_only=True)
class ImageRef:
    """An image at its place in a turn, not decoded yet."""

    source: ImageSource
    size: OwnSize | None = None
    """Its own size; None where it is shown as the others are."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A box or a point of an image, as data: what is written for it depends on the model and the size it is shown."""

    numbers: tuple[int, ...]
    """Left, top, right, bottom of a box, or x, y of a point, in pixels of the image upright and before any resizing."""
    size: tuple[int, int]
    """That image's width and height."""
    image: ImageRef | None = field(default=None, compare=False)
    """Which image of the conversation; None for its only one."""


@dataclass(frozen=True, kw_only=True)
class Named:
    """What a text calls the thing in a box, which some models mark."""

    text: str


@dataclass(frozen=True, kw_only=True)
class PlaceList:
    """An answer that lists boxes: each an object of named values, or a box alone."""

    items: tuple[tuple[tuple[str, str | int | Place], ...] | Place, ...]


@dataclass(frozen=True, kw_only=True)
class BoxForm:
    """The sentence of a question that says in what form, and how counted, boxes are to be answered."""

    named: str | None = "label"
    """What each box comes with, as a key of JSON: `label`, `text`, or nothing."""
    images: int = 1
    """How many images the question is about."""
    key: str | None = "bbox_2d"
    """Key of a box in JSON; None where boxes stand alone, each a list of four numbers."""
    name_first: bool = False
    """Whether what a box comes with stands before it in JSON."""
    placed: bool = True
    """Whether numbers are counted as the model counts; else the answer is JSON in pixels of the stored image."""

    def in_json(self, unit: str) -> str:
        """Return the sentence for answers in JSON, numbers in a unit such as `in pixels`."""
        box = "[x1, y1, x2, y2]"
        several = self.images > 1
        keys = [f'"{self.key}": {box}', *([] if self.named is None else [f'"{self.named}": "..."'])]
        keys = [*(keys[::-1] if self.name_first else keys), *(['"image_id": 0'] if several else [])]
        shown = box if self.key is None else f"{{{', '.join(keys)}}}"
        said = f"Answer with a JSON list of {shown}, {unit}."
        return f"{said} image_id counts the pictures from 0." if several else said


Piece: TypeAlias = str | Place | Named | PlaceList | BoxForm


@dataclass(frozen=True, kw_only=True)
class PlacedText:
    """One stretch of text with places of images in it; `str()` gives it with pixels, as plain JSON has them."""

    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        """The text in pixels of the images before resizing: for messages and comparison, never for a model."""
        return "".join(map(_in_pixels, self.pieces))

    def __str__(self) -> str:
        return self.text


def joined_text(pieces: Iterable[Piece]) -> str | PlacedText:
    """Return one stretch of text, plain where nothing in it depends on a model."""
    kept = tuple(piece for piece in pieces if piece != "")
    if all(isinstance(piece, str) for piece in kept):
        return "".join(map(str, kept))
    return PlacedText(pieces=kept)


def text_part(text: str | PlacedText) -> Text | PlacedText:
    """Return a stretch of text as a part of a turn."""
    return Text(text=text) if isinstance(text, str) else text


FIND = "Find every object in the picture"
"""What is asked where the data asks nothing, before the sentence that says in what form; `--box_prompt` replaces it."""


def _in_pixels(piece: Piece) -> str:
    if isinstance(piece, Place):
        return json.dumps(piece.numbers)
    if isinstance(piece, PlaceList):
        items = [item.numbers if isinstance(item, Place) else _plain(item) for item in piece.items]
        return json.dumps(items, ensure_ascii=False)
    if isinstance(piece, BoxForm):
        return piece.in_json("in pixels")
    return piece if isinstance(piece, str) else piece.text


def _plain(item: tuple[tuple[str, str | int | Place], ...]) -> dict[str, object]:
    return {key: value.numbers if isinstance(value, Place) else value for key, value in item}


Part: TypeAlias = Text | PlacedText | ImageRef


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A call of a function, which an answer asks for."""

    name: str
    arguments: str
    """A JSON object, written out."""
    id: str | None = None
    """By which a tool's turn may say whose result it is."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of a conversation."""

    role: Role
    parts: tuple[Part, ...]
    supervised: bool = True
    """Whether an assistant turn is trained on; a row may mark an answer as one that is only read. Of other turns it
    says nothing: they never are."""
    reasoning: str = ""
    """What an answer is preceded by in thought, where the row holds it apart from the text."""
    tool_calls: tuple[ToolCall, ...] = ()
    """What an answer calls, behind its text."""
    name: str | None = None
    """Of a tool's turn: the function whose result it is."""
    tool_call_id: str | None = None
    """Of a tool's turn: the call whose result it is."""

    @property
    def is_answer(self) -> bool:
        """Whether it is an answer to learn, or to compare with."""
        return self.role == "assistant" and self.supervised

    @property
    def text(self) -> str:
        """The turn's text parts joined without a separator."""
        return "".join(part.text for part in self.parts if not isinstance(part, ImageRef))


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """Where a row came from, for messages: `str()` gives `train.jsonl row 17 (line 18)` (rows count from 0)."""

    file: str
    """Or what else made it, in words."""
    row: int | None = None
    """None where it is of no file."""
    key: str | None = None
    """The row's own name, where it has one: the key of a sample in a tar."""
    line: int | None = None
    """The line of a text file that it begins in, counting from 1, as editors show it."""

    def __str__(self) -> str:
        place = self.file if self.row is None else f"{self.file} row {self.row}"
        named = [f"{what} {value}" for what, value in (("key", self.key), ("line", self.line)) if value is not None]
        return f"{place} ({', '.join(named)})" if named else place


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Turns in order, where they came from, and every answer that scoring accepts.

    `accepted_answers` is empty where the data names no alternatives; then the text of the last assistant
    turn that is trained on is the only right answer.
    """

    turns: tuple[Turn, ...]
    source: RowSource
    accepted_answers: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    """What the answers may call: each a JSON object that describes a function, written out."""
    number: int | None = None
    """Its number in the split that a loader reads, which the row table counts by; None elsewhere."""

    @property
    def answer(self) -> Turn:
        """The last turn that is trained on: what an evaluation asks for. There is one in every row."""
        return next(turn for turn in reversed(self.turns) if turn.is_answer)

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """All images in reading order."""
        return images_of(self.turns)


def images_of(turns: Sequence[Turn]) -> tuple[ImageRef, ...]:
    """Return the images of turns in reading order."""
    return tuple(part for turn in turns for part in turn.parts if isinstance(part, ImageRef))


def single_question(
    images: Sequence[ImageSource], prompt: str, system_prompt: str | None, source: RowSource
) -> Conversation:
    """Return one question about images, which go first, with an answer that is still empty."""
    parts: tuple[Part, ...] = (*(ImageRef(source=image) for image in images), Text(text=prompt))
    system = (Turn(role="system", parts=(Text(text=system_prompt),)),) if system_prompt else ()
    turns = (*system, Turn(role="user", parts=parts), Turn(role="assistant", parts=(Text(text=""),)))
    return Conversation(turns=turns, source=source)
