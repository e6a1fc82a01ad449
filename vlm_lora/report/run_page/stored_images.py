"""The images of rows that a run's files name, found again where the data keep them. Nothing is fetched.

A row's image is a file by a path, or lies inside a data file (Parquet, Arrow, tar, base64 in JSON). Such a file
is opened as training opens it, and the row read by its number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_lora.config.fields import own_fields
from vlm_lora.data.conversation import ImageSource, Url
from vlm_lora.data.formats.rows import Rows
from vlm_lora.data.images.loader import ImageLimits, load_image
from vlm_lora.data.images.values import ImagePlace, is_missing, looks_like_image, read_image_values
from vlm_lora.data.sources.named import open_source
from vlm_lora.errors import UserError

_INSIDE = re.compile(r"(?P<file>.+):(?P<row>\d+)#(?P<name>.*)")
_SPLIT = re.compile(r"(?P<name>.+) \[(?P<split>[^\]]+)\]")


@dataclass(frozen=True, kw_only=True)
class Found:
    """One image of a row, or why it is not shown."""

    name: str
    file: str = ""
    """Its own file, where it has one."""
    image: Image.Image | None = None
    why: str = ""


class StoredImages:
    """Finds the images of a run's rows; each data file is opened once.

    Args:
        settings: the run's, for the folder that paths start from and the limits of images.
        base: where the run was started, which relative paths begin at.
    """

    def __init__(self, settings: Mapping[str, Any], base: Path = Path()) -> None:
        root = settings.get("image_root")
        self._settings, self._base = settings, base
        self._root = base / Path(str(root)).expanduser() if root else None
        pixels, size = (_setting(settings, name) for name in ("max_image_pixels", "max_image_bytes"))
        self._limits = ImageLimits(max_pixels=int(pixels), max_bytes=int(size))
        self._opened: dict[str, Rows | str] = {}

    def of(self, names: Sequence[str], file: str, row: int | None) -> list[Found]:
        """Return the images of a row, in order.

        Args:
            names: what the row calls them; empty where that is not known.
            file: the data file or data set that the row is of.
            row: its number there, counting from 0.
        """
        if not names:
            return [] if row is None else self._in_row(file, row, None)
        return [found for number, name in enumerate(names) for found in self._named(name, number, file, row)]

    def _named(self, name: str, number: int, file: str, row: int | None) -> list[Found]:
        inside = _INSIDE.fullmatch(name)
        if inside:
            return self._in_row(inside["file"], int(inside["row"]), number, name)
        if "://" in name:
            return [Found(name=name, why="it is at an address, and a page fetches nothing")]
        path = next((path for path in self._candidates(name, file) if _is_file(path)), None)
        if path is not None:
            return [self._loaded(path, name)]
        if row is not None and self._rows(file) is not None:
            return self._in_row(file, row, number, name)
        return [Found(name=name, why="there is no such file now")]

    def _candidates(self, name: str, file: str) -> Iterator[Path]:
        path = Path(name).expanduser()
        yield self._base / path
        if self._root is not None:
            yield self._root / path
        yield self._base / Path(file).parent / path

    def _in_row(self, file: str, row: int, number: int | None, name: str | None = None) -> list[Found]:
        """Return all images of a row, or the one of a number."""
        called = name or f"{file} row {row}"
        rows = self._rows(file)
        if rows is None:
            return [Found(name=called, why=str(self._opened[file]))]
        try:
            place = _place_of(rows, row)
            if place is None:
                return [Found(name=called, why=f"{file} has no row {row} now")]
            sources = self._sources(rows[place], rows.origin(place).folder)
        except (UserError, OSError, ValueError) as error:
            return [Found(name=called, why=str(error))]
        if number is None:
            return [self._loaded(source, f"{called}, image {at + 1}") for at, source in enumerate(sources)]
        if number >= len(sources):
            return [Found(name=called, why=f"{file} row {row} has {len(sources)} images now")]
        return [self._loaded(sources[number], called)]

    def _sources(self, row: Mapping[str, Any], folder: Path | None) -> list[ImageSource]:
        roots = tuple(path for path in (self._root, folder) if path is not None)
        place = ImagePlace(
            folder=roots[0] if roots else None, roots=roots, data_folder=None if self._root is None else folder
        )
        column = self._settings.get("image_column")
        named = [name for name in str(column).split(",") if name in row] if column else []
        values = [row[name] for name in named] if named else list(_image_values(row))
        return [ref.source for value in values for ref in read_image_values(value, place)]

    def _loaded(self, source: ImageSource, name: str) -> Found:
        if isinstance(source, Url):
            return Found(name=name, why="it is at an address, and a page fetches nothing")
        try:
            image = load_image(source, limits=self._limits)
        except UserError as error:
            return Found(name=name, why=str(error))
        return Found(name=name, file=str(source) if isinstance(source, Path) else "", image=image)

    def _rows(self, file: str) -> Rows | None:
        """Return the rows of a file or data set; None where it cannot be opened, which is kept as text."""
        if file not in self._opened:
            try:
                self._opened[file] = self._open(file)
            except (UserError, OSError, ValueError) as error:
                self._opened[file] = str(error)
        opened = self._opened[file]
        return opened if isinstance(opened, Rows) else None

    def _open(self, file: str) -> Rows | str:
        path, named = self._base / file, _SPLIT.fullmatch(file)
        if _is_file(path):
            splits = open_source(str(path)).splits
            return next(iter(splits.values())) if len(splits) == 1 else f"{file} holds several splits"
        if _is_file(path.parent / "dataset_dict.json"):
            return open_source(str(path.parent)).splits.get(path.name, f"{path.parent} has no split {path.name} now")
        if named:
            config_name = self._settings.get("dataset_config_name")
            return open_source(named["name"], config_name=config_name).splits.get(
                named["split"], f"{named['name']} has no split {named['split']} now"
            )
        return f"{file} is not there now"


def _setting(settings: Mapping[str, Any], name: str) -> Any:
    return settings.get(name, own_fields()[name].default)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _place_of(rows: Rows, number: int) -> int | None:
    """Return where the row with this number in its file is; nearly always at that very place."""
    if number < len(rows) and rows.source(number).row == number:
        return number
    return next((place for place in range(len(rows)) if rows.source(place).row == number), None)


def _image_values(value: Any) -> Iterator[Any]:
    """Yield what is surely an image inside a row, in order."""
    if is_missing(value):
        return
    if looks_like_image(value):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _image_values(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _image_values(inner)
