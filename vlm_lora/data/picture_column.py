"""Which column holds the pictures: found from names and from the first rows' values; nothing is decoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_lora.data.column_search import ColumnSearch
from vlm_lora.data.image_values import looks_like_image
from vlm_lora.data.number_arrays import is_number_array


def find_pictures(search: ColumnSearch, mapped: str | None) -> tuple[str | None, str]:
    """Return the column of pictures, or None where there is none, and a line that says why.

    Raises:
        DataError: several columns could be it.
    """
    if mapped is not None:
        return mapped, f"image: column '{mapped}', named by --image_column"
    # A column of another meaning may carry a usual name: a chat is never a picture, nor is a number.
    # One odd row must not hide what the column is, or all rows would be text only.
    named = [c for c in search.named("image") if search.may_hold(c, _may_be_image)]
    if named:
        column = search.single("image", named)
        return column, f"image: column '{column}', by its name"
    by_value = [c for c in search.columns if search.holds(c, looks_like_image)]
    if by_value:
        column = search.single("image", by_value)
        return column, f"image: column '{column}', because its values are pictures or names of picture files"
    return None, "image: no column"


def _may_be_image(value: Any) -> bool:
    if isinstance(value, list | tuple):
        if is_number_array(value):
            return True
        return all(_may_be_image(item) for item in value)
    if isinstance(value, Mapping):
        return "bytes" in value or "path" in value
    return not isinstance(value, int | float)
