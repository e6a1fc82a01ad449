"""Which column holds the images: found from names and from the first rows' values; nothing is decoded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlm_lora.data.columns.names import COLUMN_NAMES
from vlm_lora.data.columns.search import NO_PICTURES, ColumnSearch
from vlm_lora.data.images.number_arrays import is_number_array
from vlm_lora.data.images.values import ADDRESS_KEYS, is_missing, looks_like_image
from vlm_lora.data.wording import quoted, short
from vlm_lora.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Images:
    """Which column holds them, and why."""

    column: str | None
    """None where there is none."""
    why: str
    declined: bool = False
    """Whether the user said that there are no images."""


def find_images(search: ColumnSearch, mapped: str | None) -> Images:
    """Find the column of images.

    Raises:
        DataError: several columns could be it.
    """
    if mapped == NO_PICTURES and mapped not in search.columns:
        return Images(column=None, why=f"image: none, by --image_column {NO_PICTURES}", declined=True)
    if mapped is not None:
        return Images(column=mapped, why=f"image: column '{mapped}', named by --image_column")
    # A column of another meaning may carry a usual name: a chat is never an image, nor is a number.
    # One odd row must not hide what the column is, or all rows would be text only.
    named = [c for c in search.named("image") if search.may_hold(c, may_be_image)]
    if named:
        column = search.single("image", named)
        return Images(column=column, why=f"image: column '{column}', by its name")
    by_value = [c for c in search.columns if search.mostly_holds(c, looks_like_image)]
    if by_value:
        column = search.single("image", by_value)
        why = f"image: column '{column}', because its values are images or names of image files"
        return Images(column=column, why=why)
    return Images(column=None, why="image: no column")


def explain_text_only(search: ColumnSearch, pictures: Images) -> str:
    """Return the line that explains where images come from, in data whose chats bring none of their own.

    Raises:
        DataError: a column is called as images are, and holds none.
    """
    if pictures.column is not None or pictures.declined:
        return pictures.why
    usual = [c for c in search.columns if c.casefold() in COLUMN_NAMES["image"].usual]
    if usual:
        column = usual[0]
        held = next(value for value in search.values(column) if not is_missing(value))
        raise DataError(
            f"{search.where}: the column '{column}' is called as images are, and holds none, such as {short(held)}. "
            'An image is a path, a URL, encoded bytes, base64, a data URI, {"bytes", "path"}, {"url"} or {"src"}. '
            f"It has {quoted(search.columns)}. Type --image_column COLUMN with the one that holds the images, or "
            f"--image_column {NO_PICTURES} to train on text alone."
        )
    if not search.quiet:
        logger.warning(
            "%s: no image column among %s: the rows are text only. If there are images, type --image_column.",
            search.where,
            quoted(search.columns),
        )
    return f"{pictures.why} among {quoted(search.columns)}: the rows are text only"


def may_be_image(value: Any) -> bool:
    """Tell whether a value could be an image in a column that is called as images are."""
    if isinstance(value, list | tuple):
        if is_number_array(value):
            return True
        return all(may_be_image(item) for item in value)
    if isinstance(value, Mapping):
        return any(key in value for key in ("bytes", "path", *ADDRESS_KEYS))
    return not isinstance(value, int | float)
