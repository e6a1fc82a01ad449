"""From what the user named (Hub id, file, folder or glob) to rows by split. No picture is decoded here.

1. Decide what the name is: an existing file or folder, a glob, else a Hub id.
2. List the data files of a folder or glob and group them by the split that their names say.
3. Open each file: JSON by byte ranges, tars by an index, CSV and small Parquet in memory, Arrow memory-mapped,
   large Parquet through the Arrow cache of `datasets`, whose key holds each file's path and modification time.
"""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_lora.data.csv_files import read_csv
from vlm_lora.data.json_files import read_json, read_json_lines
from vlm_lora.data.name_patterns import expand
from vlm_lora.data.rows import Origin, Rows, Table, join_files
from vlm_lora.data.splits import split_kind, split_word
from vlm_lora.data.table_files import HeldOpen, count_parquet_rows, read_arrow, read_parquet
from vlm_lora.data.tars.index_files import is_index_file
from vlm_lora.data.tars.opening import check_all_there, is_tar, open_tars, tar_stem
from vlm_lora.errors import DataError

logger = logging.getLogger(__name__)

READERS: Mapping[str, Callable[[Path], Table]] = {
    ".json": read_json,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".feather": read_arrow,
}
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
PARQUET_IN_MEMORY = 256 * 1024 * 1024
"""Parquet files that are together larger (bytes) go through the Arrow cache instead of memory."""
BOOKKEEPING = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
"""Files that `datasets` writes beside the data."""

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, kw_only=True)
class Source:
    """The splits that were found, by the name each has in the data."""

    name: str
    splits: Mapping[str, Rows]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a name stands for: files by split, a folder of `save_to_disk`, or else a Hub id."""

    files: Mapping[str, Sequence[Path]] | None = None
    saved: Path | None = None


def find_source(name: str, *, config_name: str | None = None, flag: str = "dataset_name") -> Found:
    """Say what a name stands for; no file is opened. Arguments and errors as those of `open_source`."""
    path = Path(name).expanduser()
    if path.is_dir():
        return _find_in_folder(path, config_name)
    if path.is_file():
        return Found(files=_group_by_split([path]))
    names = expand(name, flag=flag)
    if len(names) > 1 or glob.has_magic(name):
        return Found(files=_group_by_split(_list_named(name, names, flag)))
    if path.exists():
        raise DataError(f"--{flag} {name}: neither a regular file nor a folder.")
    looks_local = path.suffix.lower() in READERS or is_tar(path) or name.startswith((".", "/", "~"))
    if looks_local or not _HUB_ID.fullmatch(name):
        raise DataError(f"--{flag} {name}: no such file or folder (looked at {path.absolute()}).")
    return Found()


def open_source(name: str, *, config_name: str | None = None, flag: str = "dataset_name") -> Source:
    """Open a Hub id, file, folder or glob, or several files: `{0000..0007}`, `{a,b}`, commas.

    Args:
        name: What the user typed.
        config_name: Configuration of a Hub data set, or sub-folder of a local one.
        flag: The flag it was typed for, for messages.

    Raises:
        DataError: Nothing there, nothing readable there, or malformed content (with file and line).
    """
    found = find_source(name, config_name=config_name, flag=flag)
    if found.files is not None:
        return Source(name=name, splits=_open_files(found.files))
    if found.saved is not None:
        return Source(name=name, splits=_open_saved(found.saved))
    loaded = load_from_hub(name, config_name, flag, streaming=False)
    splits = {str(split): _from_dataset(data, f"{name} [{split}]", None) for split, data in loaded.items()}
    return Source(name=name, splits=splits)


def _list_named(name: str, names: Sequence[str], flag: str) -> list[Path]:
    """Return the files of several names, each a file, a glob or a folder of tars, each file once.

    Raises:
        DataError: A name that nothing matches.
    """
    files: list[Path] = []
    for each in names:
        path = Path(each).expanduser()
        if path.is_dir():
            found = [p for p in _list_data_files(path) if is_tar(p)]
            check_all_there(found, "*")
        elif path.is_file():
            found = [path]
        else:
            # Path.glob takes no absolute patterns.
            matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
            found = [p for p in map(Path, matches) if p.is_file() and not is_index_file(p)]
            check_all_there([p for p in found if is_tar(p)], path.name)
        if not found:
            of = "" if each == name else f"{each}: "
            raise DataError(f"--{flag} {name}: {of}no file matches (looked from {Path.cwd()}).")
        files += found
    return list(dict.fromkeys(files))


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
            f"--{flag} {name}: there is no such file or folder at {Path(name).absolute()}, and the Hub "
            "data set "
            f"'{name}' could not be loaded: {error} Check the spelling and the network, or name a local copy."
        ) from error
    return loaded


def _from_dataset(dataset: object, name: str, folder: Path | None) -> Rows:
    return Rows([HeldOpen.of(dataset)], [Origin(file=name, folder=folder, first=0)])


def _find_in_folder(folder: Path, config_name: str | None) -> Found:
    if config_name is not None:
        inner = folder / config_name
        if not inner.is_dir():
            raise DataError(f"--dataset_config_name {config_name}: {folder} has no such sub-folder.")
        folder = inner
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return Found(saved=folder)
    metadata = _list_metadata(folder)
    files = metadata or _list_data_files(folder)
    if not files:
        raise DataError(_explain_empty(folder))
    check_all_there([p for p in files if is_tar(p)], "*")
    return Found(files=_group_by_split(files, root=folder))


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


def _split_folders(folder: Path) -> list[Path]:
    """Return the folder, its `data` folder, and the sub-folders of both whose names are splits."""
    tops = [folder, *(p for p in (folder / "data",) if p.is_dir())]
    inner = [p for top in tops for p in sorted(top.iterdir()) if p.is_dir() and split_kind(p.name)]
    return [*tops, *inner]


def _list_metadata(folder: Path) -> list[Path]:
    """Return the metadata files of an image folder."""
    found = []
    for place in _split_folders(folder):
        here = [p for p in sorted(place.glob("metadata.*")) if p.suffix.lower() in READERS and p.is_file()]
        if len(here) > 1:
            raise DataError(f"{place} has several metadata files: {_listed(here)}. Keep one.")
        found += here
    names_splits = [p for p in sorted(folder.iterdir()) if p.is_dir() and split_kind(p.name)]
    if found and found[0].parent == folder and names_splits and len(found) == 1:
        raise DataError(
            f"{found[0]} would make one split of pictures that lie in {_listed(names_splits)}. "
            "Put a metadata file of its own into each of these folders."
        )
    return found


def _list_data_files(folder: Path) -> list[Path]:
    return [
        p
        for place in _split_folders(folder)
        for p in sorted(place.iterdir())
        if p.is_file()
        and (p.suffix.lower() in READERS or is_tar(p))
        and p.name not in BOOKKEEPING
        and not is_index_file(p)
        and not p.name.startswith((".", "_"))
    ]


def _split_of(path: Path, root: Path | None = None) -> str | None:
    """Return the split a file says it belongs to: by its folder below the root, else by its name."""
    below = root is not None and path.parent != root
    return (split_word(path.parent.name) if below else None) or split_word(_stem(path))


def _stem(path: Path) -> str:
    return tar_stem(path) if is_tar(path) else path.stem


def _suffix(path: Path) -> str:
    """Return the ending that says the format; packed tars are tars."""
    return ".tar" if is_tar(path) else path.suffix.lower()


def _group_by_split(files: Sequence[Path], root: Path | None = None) -> dict[str, list[Path]]:
    """Group files by split. Where some name a split, those that name none are left out, with a warning."""
    groups: dict[str, list[Path]] = {}
    unnamed = []
    for path in files:
        split = _split_of(path, root)
        if split is None:
            unnamed.append(path)
        else:
            groups.setdefault(split, []).append(path)
    if not groups:
        return {"train": unnamed}
    if unnamed:
        logger.warning(
            "Left out, because other files name their split and these do not: %s. "
            "Put train, validation or test into a file's name to use it.",
            _listed(unnamed),
        )
    return groups


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
                f"The {split} split has files of several formats, perhaps the same rows twice: "
                f"{_listed(paths)}. "
                "Keep one format, or name the file to use."
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
        return READERS[path.suffix.lower()](path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _open_large_parquet(paths: Sequence[Path]) -> Rows:
    """Convert to memory-mapped Arrow once; `datasets` converts again when a file changes."""
    import datasets

    origins, first = [], 0
    for path in paths:
        origins.append(Origin(file=str(path), folder=path.parent, first=first))
        first += count_parquet_rows(path)
    try:
        loaded = datasets.load_dataset("parquet", data_files=[str(p.absolute()) for p in paths], split="train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{_listed(paths)} cannot be read: {error.__cause__ or error}") from error
    return Rows([HeldOpen.of(loaded)], origins)


def _explain_suffix(path: Path) -> str:
    return f"{path}: files ending in '{path.suffix}' are not read. Readable are {', '.join(READERS)}, .tar, .tar.gz."


def _explain_empty(folder: Path) -> str:
    inside = sorted(folder.iterdir())
    pictures = any(p.suffix.lower() in PICTURES for p in inside) or any(
        q.suffix.lower() in PICTURES for p in inside if p.is_dir() for q in p.iterdir()
    )
    if pictures:
        return (
            f"{folder} holds pictures, but nothing says what is asked and answered about them. Put a "
            "metadata.jsonl "
            'beside them, one line for each picture: {"file_name": "0001.png", "prompt": "...", '
            '"response": "..."}.'
        )
    shown = _listed(p.name + ("/" if p.is_dir() else "") for p in inside[:10]) or "nothing"
    return (
        f"{folder} holds no data files. Looked for {', '.join(READERS)}, .tar, .tar.gz in it, in its data folder "
        "and in folders "
        f"named as splits, and for a save_to_disk folder; it holds {shown}. "
        "A sub-folder is chosen with --dataset_config_name or by naming it."
    )


def _listed(names: Iterable[object]) -> str:
    return ", ".join(str(name) for name in names)
