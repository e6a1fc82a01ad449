"""Rows of any source as samples of a tar: members of a tar as they are, other rows as JSON and images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.columns.schema import find_image_column
from vlm_lora.data.formats.rows import Rows
from vlm_lora.data.formats.tar.opening import tar_stem
from vlm_lora.data.formats.tar.samples import IMAGES, check_sample, kind_of
from vlm_lora.data.formats.tar.table import TarTable
from vlm_lora.data.formats.tar.writing import Sample
from vlm_lora.data.images.loader import ImageLimits, load_image
from vlm_lora.data.images.values import ImagePlace, read_image_values
from vlm_lora.errors import ConfigError, DataError, ImageError

_ENDINGS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tif"}
"""Pillow's name of a format to the extension it is written with; PPM's variants are all `ppm`."""


@dataclass(frozen=True, kw_only=True)
class MemberChoice:
    """Which members of a tar are taken; None takes all that are read."""

    pictures: frozenset[str] | None = None
    """Extensions of images."""
    meta: str | None = None
    """Extension of JSON or text."""

    def takes(self, extension: str) -> bool:
        """Tell whether a member is taken."""
        if kind_of(extension) in ("json", "text"):
            return self.meta in (None, extension)
        return self.pictures is None or extension.rpartition(".")[2] in self.pictures

    def check(self) -> None:
        """Refuse extensions that are not read. Raises ConfigError."""
        unknown = sorted((self.pictures or frozenset()) - IMAGES)
        if unknown:
            raise ConfigError(f"--img_exts {unknown[0]}: read are {', '.join(sorted(IMAGES))}.")
        if self.meta is not None and kind_of(self.meta) not in ("json", "text"):
            raise ConfigError(f"--meta_ext {self.meta}: read are json, txt, text, cls and caption.")


class Samples(Protocol):
    """Samples by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Sample: ...


def samples_of(rows: Rows, config: DataConfig, choice: MemberChoice) -> Samples:
    """Return the rows of one split as samples.

    Raises:
        ConfigError: Members are chosen, and the source is no tar.
        DataError: No image column, or keys that cannot be made different.
    """
    if all(isinstance(rows.locate(origin.first)[0], TarTable) for origin in rows.origins if len(rows)):
        return _TarSamples(rows, choice)
    if choice != MemberChoice():
        raise ConfigError(f"--img_exts and --meta_ext choose members of tars, and {rows.files[0]} is none.")
    return _RowSamples(rows, config)


class _TarSamples:
    """Samples of tars, their members byte for byte."""

    def __init__(self, rows: Rows, choice: MemberChoice) -> None:
        self._rows = rows
        self._choice = choice
        self._prefixed = self._find_repeated()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Sample:
        table, row = self._table(number)
        where = str(self._rows.source(number))
        payloads = {e: b for e, b in table.payloads(row, where).items() if self._choice.takes(e)}
        fault = check_sample(list(payloads))
        if fault:
            raise DataError(f"{where}: {fault}, with the members that --img_exts and --meta_ext leave.")
        return Sample(key=self._key(number, self._prefixed), payloads=payloads)

    def _key(self, number: int, prefixed: bool) -> str:
        table, row = self._table(number)
        key = table.key(row)
        if not prefixed:
            return key
        folder, slash, stem = key.rpartition("/")
        # A dot would end the key.
        return f"{folder}{slash}{tar_stem(Path(table.name)).replace('.', '_')}_{stem}"

    def _find_repeated(self) -> bool:
        """Tell whether keys need their tar's name before them, because several tars have the same."""
        if len(set(self._keys(prefixed=False))) == len(self):
            return False
        key, count = Counter(self._keys(prefixed=True)).most_common(1)[0]
        if count > 1:
            raise DataError(
                f"{count} samples would have the key '{key}': tars of the same name have the same keys. Rename a tar, "
                "or shard them one by one."
            )
        return True

    def _keys(self, *, prefixed: bool) -> list[str]:
        return [self._key(number, prefixed) for number in range(len(self))]

    def _table(self, number: int) -> tuple[TarTable, int]:
        table, row = self._rows.locate(number)
        assert isinstance(table, TarTable)  # samples_of has looked
        return table, row


class _RowSamples:
    """Rows of another source: the image column as files, all other columns as JSON, numbered keys."""

    def __init__(self, rows: Rows, config: DataConfig) -> None:
        self._rows = rows
        self._column = find_image_column(rows, config)
        self._root = Path(config.image_root).expanduser().resolve() if config.image_root else None
        self._limits = ImageLimits.of(config)
        self._width = max(6, len(str(len(rows))))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Sample:
        row = dict(self._rows[number])
        own = self._rows.origin(number).folder
        folder = self._root or own
        place = ImagePlace(folder=folder, roots=(folder,) if folder else (), data_folder=own if self._root else None)
        value = row.pop(self._column, None)
        try:
            refs = read_image_values(value, place)
            if not refs:
                raise DataError("has no image, and a sample of a tar needs one. Leave the row out.")
            if any(ref.size is not None for ref in refs):
                raise DataError("has a size of its own for an image, which a tar's member cannot keep. Leave it out.")
            pictures = [self._encoded(ref.source) for ref in refs]
            payloads = {"json": _encode_json(row)}
        except DataError as error:
            raise type(error)(f"{self._rows.source(number)}: {error}") from error
        several = len(refs) > 1 or isinstance(value, list | tuple)
        for place_in_row, (encoded, ending) in enumerate(pictures):
            payloads[f"{place_in_row}.{ending}" if several else ending] = encoded
        return Sample(key=f"{number:0{self._width}d}", payloads=payloads)

    def _encoded(self, source: object) -> tuple[bytes, str]:
        """Return an image as it is stored, and the extension of its format."""
        if isinstance(source, Path):
            encoded = _read_file(source)
        elif isinstance(source, bytes):
            encoded = source
        else:
            raise ImageError("an image that is decoded already cannot be copied as it is.")
        # An image that could not be loaded later does not get into a shard.
        load_image(encoded, limits=self._limits)
        with Image.open(BytesIO(encoded)) as picture:
            return encoded, _ENDINGS.get(str(picture.format), "ppm")


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}.") from error


def _encode_json(row: Mapping[str, Any]) -> bytes:
    for column, value in row.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DataError(f"column '{column}' cannot be written as JSON: {error}.") from error
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass")
