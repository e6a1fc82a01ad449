"""From what the user named (Hub id, file, folder or glob) to rows by split. No image is decoded here.

`found_files` lists the files of a name and `file_splits` groups them. Here each is opened: JSON by byte ranges, tars by
an index, CSV and small Parquet in memory, Arrow memory-mapped, large Parquet through the Arrow cache of `datasets`,
whose key holds each file's path and modification time, and whose files are held against their hash.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_lora.data.formats.arrow_files import HeldOpen, count_parquet_rows, parquet_features
from vlm_lora.data.formats.json_files import is_json, may_be_json
from vlm_lora.data.formats.rows import Origin, Rows, Table, join_files
from vlm_lora.data.formats.tar.opening import is_tar, open_tars
from vlm_lora.data.sources.arrow_caches import arrow_files, damaged
from vlm_lora.data.sources.files import READERS, find_source
from vlm_lora.data.wording import joined
from vlm_lora.errors import DataError

logger = logging.getLogger(__name__)

PARQUET_IN_MEMORY = 256 * 1024 * 1024
"""Parquet files that are together larger (bytes) go through the Arrow cache instead of memory."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The splits that were found, by the name each has in the data."""

    name: str
    splits: Mapping[str, Rows]


def open_source(name: str, *, config_name: str | None = None, flag: str = "dataset_name") -> Source:
    """Open a Hub id, file, folder or glob, or several files: `{0000..0007}`, `{a,b}`, commas.

    Args:
        name: What the user set.
        config_name: Configuration of a Hub data set, or sub-folder of a local one.
        flag: The flag it was set for, for messages.

    Raises:
        DataError: Nothing there, nothing readable there, or malformed content (with file and line).
    """
    found = find_source(name, config_name=config_name, flag=flag)
    if found.files is not None:
        return Source(name=name, splits=_open_files(found.files))
    if found.saved is not None:
        return Source(name=name, splits=_open_saved(found.saved))
    loaded = load_from_hub(name, config_name, flag, streaming=False)
    _refuse_damaged(f"--{flag} {name}", [file for data in loaded.values() for file in arrow_files(data)])
    splits = {str(split): _from_dataset(data, f"{name} [{split}]", None) for split, data in loaded.items()}
    return Source(name=name, splits=splits)


def load_from_hub(name: str, config_name: str | None, flag: str, *, streaming: bool) -> Mapping[str, Any]:
    """Return the data sets of `datasets` by split, or with `streaming` its iterable ones.

    Raises:
        DataError: there is no such data set, or it cannot be loaded.
    """
    import datasets

    try:
        loaded: Mapping[str, Any] = datasets.load_dataset(name, config_name, streaming=streaming)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"--{flag} {name}: there is no such file or folder at {Path(name).absolute()}, and the Hub data set "
            f"'{name}' could not be loaded: {error} Check the spelling and the network, or name a local copy."
        ) from error
    return loaded


def _refuse_damaged(name: str, files: Sequence[Path]) -> None:
    """Raise DataError where an Arrow file is not what it was when a run first used it."""
    try:
        bad = damaged(files)
    except OSError as error:
        raise DataError(f"{name}: {error.filename} cannot be read: {error.strerror}.") from error
    if bad:
        raise DataError(
            f"{name}: the copy that `datasets` keeps is not as it was when a run first used it: {joined(bad)}. Delete "
            f"the folder {bad[0].parent}, and it is made again."
        )


def _from_dataset(dataset: object, name: str, folder: Path | None) -> Rows:
    return Rows([HeldOpen.of(dataset)], [Origin(file=name, folder=folder, first=0)])


def _open_saved(folder: Path) -> dict[str, Rows]:
    """Open what `save_to_disk` wrote."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: not a complete save_to_disk folder: {error}") from error
    if isinstance(loaded, datasets.DatasetDict):
        return {str(split): _from_dataset(data, f"{folder}/{split}", folder) for split, data in loaded.items()}
    return {str(loaded.split or "train"): _from_dataset(loaded, str(folder), folder)}


def _suffix(path: Path) -> str:
    """Return the ending that says the format; packed tars are tars, and JSON is JSON whatever its name says."""
    suffix = ".tar" if is_tar(path) else path.suffix.lower()
    if suffix in (".csv", ".tsv") and is_json(path):
        return ".json"
    return suffix if suffix in {*READERS, ".tar"} or not may_be_json(path) else ".json"


def _open_files(groups: Mapping[str, Sequence[Path]]) -> dict[str, Rows]:
    splits = {}
    for split, paths in groups.items():
        suffixes = {_suffix(path) for path in paths}
        unknown = sorted(suffixes - {*READERS, ".tar"})
        if unknown:
            odd = next(path for path in paths if _suffix(path) in unknown)
            raise DataError(_explain_suffix(odd))
        if len(suffixes) > 1:
            raise DataError(
                f"The {split} split has files of several formats, perhaps the same rows twice: {joined(paths)}. Keep "
                "one format, or name the file to use."
            )
        if suffixes == {".tar"}:
            splits[split] = open_tars(paths)
        elif suffixes == {".parquet"} and sum(path.stat().st_size for path in paths) > PARQUET_IN_MEMORY:
            splits[split] = _open_large_parquet(paths)
        else:
            splits[split] = join_files([(str(path), path.parent, _read(path)) for path in paths])
    return splits


def _read(path: Path) -> Table:
    try:
        return READERS[_suffix(path)](path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _open_large_parquet(paths: Sequence[Path]) -> Rows:
    """Convert to memory-mapped Arrow once; again when a file or its copy has changed."""
    import datasets

    origins, first = [], 0
    for path in paths:
        origins.append(Origin(file=str(path), folder=path.parent, first=first))
        first += count_parquet_rows(path)
    name, errors = joined(paths), (OSError, ValueError, datasets.exceptions.DatasetsError)
    options: dict[str, Any] = {"data_files": [str(path.absolute()) for path in paths], "split": "train"}
    again = datasets.DownloadMode.FORCE_REDOWNLOAD  # which is of the files named, and no download
    try:
        try:
            loaded = datasets.load_dataset("parquet", **options)
            bad = damaged(arrow_files(loaded))
            fault = f"{joined(bad)} is not as it was when first used" if bad else ""
        except errors as error:
            fault = str(error.__cause__ or error)
        if fault:
            logger.warning("%s: the Arrow copy that `datasets` keeps is made again: %s.", name, fault)
            loaded = datasets.load_dataset("parquet", **options, download_mode=again)
            _refuse_damaged(name, arrow_files(loaded))
    except errors as error:
        raise DataError(f"{name} cannot be read: {error.__cause__ or error}") from error
    return Rows([HeldOpen.of(loaded)], origins, [(str(path), parquet_features(path)) for path in paths])


_PICKLES = (".p", ".pk", ".pkl", ".pickle")


def _explain_suffix(path: Path) -> str:
    if path.suffix.casefold() in _PICKLES:
        return (
            f"{path}: this is a pickle by its name, and reading one can run code. Write its rows as JSON Lines, one "
            "object a line, with the program that made it or with one that you trust."
        )
    return f"{path}: files ending in '{path.suffix}' are not read. Readable are {', '.join(READERS)}, .tar, .tar.gz."
