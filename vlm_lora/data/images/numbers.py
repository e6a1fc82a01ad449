"""Images that rows name by a number or a name without its ending, as COCO's files do: found below `--image_root`.

`139` and `"139"` are `000000000139.jpg` or `COCO_val2014_000000000139.jpg`; `"abc"` is `abc.jpg`. Tables that
have no lists or whole numbers write `"[139, 285]"` and `"139.0"`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlm_lora.data.conversations.texts import written_list
from vlm_lora.data.images.formats import SUFFIXES
from vlm_lora.data.wording import joined
from vlm_lora.errors import ImageError

NAMES = ("image_id", "img_id", "imageid", "imgid", "image_ids", "img_ids", "imageids", "imgids")
"""Columns (case does not count) that name images so."""


_LIST = re.compile(r"\[\s*\d+(?:\s+\d+)*\s*\]")
"""Whole numbers in a list as numpy writes one."""


def ids_in(value: Any) -> Sequence[Any]:
    """Return the numbers or names that a row's value holds: its items, where it is a list or a text of one."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        items = written_list(value)
        value = value if items is None else items
    if isinstance(value, str) and value.lstrip().startswith("["):
        text = value.strip()
        try:
            items = text[1:-1].split() if _LIST.fullmatch(text) else json.loads(text)
        except (ValueError, RecursionError):
            items = None
        value = items if isinstance(items, list) else value
    return value if isinstance(value, list | tuple) else [value]


def is_known_id(value: Any, root: Path) -> bool:
    """Tell whether each number or name that a value holds is that of at least one image file below a folder."""
    ids = ids_in(value)
    return bool(ids) and all(_files_of(one, root) for one in ids)


def find_by_id(value: Any, root: Path) -> Path:
    """Return the one image file below a folder that a row's value names.

    Args:
        value: a whole number, or text: the file's name without its ending, or with it.
        root: the folder, whose own folders are looked through too.

    Raises:
        ImageError: no such file, or several.
    """
    found = _files_of(value, root)
    if not found:
        raise ImageError(
            f"The image {value!r} names no file below {root}: neither {value}.jpg (or another image format's ending) "
            "nor a name that ends with that number. Type --image_root with the folder of the images."
        )
    if len(found) > 1:
        raise ImageError(
            f"The image {value!r} could be any of {len(found)} files below {root}: {joined(found[:4])}. Type "
            "--image_root with the folder that holds the right ones alone, or name the file itself in the row."
        )
    return root / found[0]


def _files_of(value: Any, root: Path) -> Sequence[str]:
    """Return the files that a value names, as paths from the root."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return ()
    if isinstance(value, float):
        if not value.is_integer():
            return ()
        value = int(value)
    text = str(value).strip()
    files = _index(root)
    return files.get(_key(text)) or files.get(_key(_FRACTION.sub("", text)), ()) if text else ()


_FRACTION = re.compile(r"(?<=\d)\.0+$")
"""What a table that stores whole numbers as fractions writes behind them."""


@lru_cache(maxsize=4)
def _index(root: Path) -> Mapping[str, Sequence[str]]:
    """Return the image files below a folder by all that may name them; a folder is looked through once a process."""
    found: dict[str, list[str]] = {}
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            stem, ending = os.path.splitext(name)  # noqa: PTH122 (a path object for each of a million files)
            if ending.lower() in SUFFIXES:
                path = os.path.relpath(os.path.join(folder, name), root)  # noqa: PTH118
                last = stem.rpartition("_")[2]
                for key in {_key(stem), name, *([_key(last)] if _is_number(last) else [])}:
                    found.setdefault(key, []).append(path)
    return found


def _key(text: str) -> str:
    """Return what stands for a name: of a number the number, whatever zeros it begins with."""
    return str(int(text)) if _is_number(text) else text


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
