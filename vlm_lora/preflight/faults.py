"""Kinds of faults that a row may have, and what to do about each."""

from __future__ import annotations

from collections.abc import Mapping

from vlm_lora.errors import DataError, ImageError, RenderingError, ThinkingError, TooLongError

TOO_LONG = "too long"
"""The kind that `--on_overflow` is about."""

CURES: Mapping[str, str] = {
    "picture": "Repair or replace the image, fix the path, or take the row out.",
    TOO_LONG: "Raise --max_length, shorten or split the row, use smaller images, or see --on_overflow.",
    "labels": "Put the turns and images right so that the model's chat template can write them, or take the row out.",
    "thinking": "Give the answers their thoughts or leave them out, or set --enable_thinking as the rows are.",
    "row": "Put the row's values right, or take the row out.",
}
"""By kind of fault: what to do about it."""


def kind_of(error: DataError) -> str:
    """Return the kind of fault, a key of `CURES`."""
    kinds = ((TooLongError, TOO_LONG), (ThinkingError, "thinking"), (RenderingError, "labels"), (ImageError, "picture"))
    return next((name for owner, name in kinds if isinstance(error, owner)), "row")
