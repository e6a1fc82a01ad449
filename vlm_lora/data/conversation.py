"""The one value that every data layout becomes before anything else sees it."""

from __future__ import annotations

from dataclasses import dataclass
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


Part: TypeAlias = Text | ImageRef


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
        return "".join(part.text for part in self.parts if isinstance(part, Text))


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """Where a row came from, for messages: `str()` gives `train.jsonl row 17` (rows count from 0)."""

    file: str
    """Or what else made it, in words."""
    row: int | None = None
    """None where it is of no file."""
    key: str | None = None
    """The row's own name, where it has one: the key of a sample in a tar."""

    def __str__(self) -> str:
        place = self.file if self.row is None else f"{self.file} row {self.row}"
        return place if self.key is None else f"{place} (key {self.key})"


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
        return tuple(p for turn in self.turns for p in turn.parts if isinstance(p, ImageRef))
