"""What a row asks, in words that a reader of results knows it again by: its question and the names of its images."""

from __future__ import annotations

from pathlib import Path

from vlm_lora.data.conversation import Conversation, ImageSource, Url


def question_of(row: Conversation) -> str:
    """Return the text of the turn that the row's answer answers; boxes in it are in pixels of the stored image.

    A turn before it (a system prompt, an earlier question) is not in it.
    """
    place = max(number for number, turn in enumerate(row.turns) if turn.is_answer)
    return next((turn.text for turn in reversed(row.turns[:place]) if turn.role in ("user", "tool")), "")


def image_names(row: Conversation) -> tuple[str, ...]:
    """Return a name for each of the row's images, in reading order.

    A file's is its path, and that of one to be fetched its address. An image that lies in the row itself, as bytes, has
    `FILE:ROW#n`: the image n, from 0, of that row, which is counted from 0 as `source` counts it.
    """
    place = f"{row.source.file}:{'' if row.source.row is None else row.source.row}"
    return tuple(_name(image.source) or f"{place}#{number}" for number, image in enumerate(row.images))


def _name(source: ImageSource) -> str | None:
    if isinstance(source, Url):
        return source.text
    return str(source) if isinstance(source, Path) else None
