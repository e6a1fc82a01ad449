"""Which files a name stands for, and by which split: an existing file or folder, a glob, a list, else a Hub id.

None is opened but those that may be the metadata of an image folder.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlm_lora.data.formats.arrow_files import read_arrow, read_parquet
from vlm_lora.data.formats.csv_files import read_csv
from vlm_lora.data.formats.json_files import read_json, read_json_lines, stream_json_lines
from vlm_lora.data.formats.rows import Table
from vlm_lora.data.formats.tar.index_files import is_index_file
from vlm_lora.data.formats.tar.opening import check_all_there, is_tar
from vlm_lora.data.sources.file_splits import check_shards, group_by_split, split_of_one
from vlm_lora.data.sources.name_patterns import expand
from vlm_lora.data.splits import split_kind
from vlm_lora.data.wording import joined
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
IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
BOOKKEEPING = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
"""Files that `datasets` writes next to the data."""

_FILE_NAMES = re.compile(r"(?:.*_)?file_names?")
"""Columns that make a metadata file that of an image folder, as in Hugging Face `datasets`."""
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a name stands for: files by split, a folder of `save_to_disk`, or else a Hub id."""

    files: Mapping[str, Sequence[Path]] | None = None
    saved: Path | None = None


def find_source(name: str, *, config_name: str | None = None, flag: str = "dataset_name") -> Found:
    """Say what a name stands for. Arguments and errors as those of `open_source`."""
    path = Path(name).expanduser()
    if path.is_dir():
        return _find_in_folder(path, config_name, flag)
    if path.is_file():
        return Found(files=split_of_one(path))
    names = expand(name, flag=flag)
    if names != [name] or glob.has_magic(name):
        return Found(files=_find_named(name, names, flag))
    if path.exists():
        raise DataError(f"--{flag} {name}: neither a regular file nor a folder.")
    looks_local = path.suffix.lower() in READERS or is_tar(path) or name.startswith((".", "/", "~"))
    if looks_local or not _HUB_ID.fullmatch(name):
        raise DataError(f"--{flag} {name}: no such file or folder (looked at {path.absolute()}).")
    return Found()


def _find_named(name: str, names: Sequence[str], flag: str) -> Mapping[str, Sequence[Path]]:
    """Return the files of several names, each a file, a glob or a folder, each file once, by split.

    Raises:
        DataError: A name that nothing matches, or a folder that cannot be one of several.
    """
    files: list[Path] = []
    roots: list[Path] = []
    for each in names:
        path = Path(each).expanduser()
        if path.is_dir():
            found, root = _list_folder(path, flag), path
        elif path.is_file():
            found, root = [path], path.parent
        else:
            found, root = _match(path, flag), _fixed_part(path)
        if not found:
            of = "" if each == name else f"{each}: "
            raise DataError(f"--{flag} {name}: {of}no file matches (looked from {Path.cwd()}).")
        files += found
        roots.append(root)
    files = list(dict.fromkeys(files))
    if len(files) == 1 and not any(map(glob.has_magic, names)):
        return split_of_one(files[0])
    root = Path(os.path.commonpath([root.absolute() for root in roots]))
    return group_by_split(files, root=root, flag=flag)


def _match(pattern: Path, flag: str) -> list[Path]:
    # Path.glob takes no absolute patterns.
    matches = sorted(glob.glob(str(pattern), recursive=True))  # noqa: PTH207
    found = [path for path in map(Path, matches) if path.is_file() and not is_index_file(path)]
    check_all_there([path for path in found if is_tar(path)], pattern.name)
    check_shards(found, pattern.name, flag=flag)
    return found


def _fixed_part(pattern: Path) -> Path:
    """Return the folder in which a glob begins to choose."""
    return next(folder for folder in pattern.parents if not glob.has_magic(str(folder)))


def _find_in_folder(folder: Path, config_name: str | None, flag: str) -> Found:
    if config_name is not None:
        inner = folder / config_name
        if not inner.is_dir():
            raise DataError(f"--dataset_config_name {config_name}: {folder} has no such sub-folder.")
        folder = inner
    if _is_saved(folder):
        return Found(saved=folder)
    return Found(files=group_by_split(_list_folder(folder, flag), root=folder, flag=flag))


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _list_folder(folder: Path, flag: str) -> list[Path]:
    """Return the data files of a folder. Raises DataError where there are none, or they must be opened together."""
    if _is_saved(folder):
        own = "Name it as a data set of its own, with a space instead of the comma."
        raise DataError(
            f"{folder} is a folder of save_to_disk, which is read as a whole and not in one list with other files. "
            f"{own if flag == 'dataset_name' else 'Name it alone.'}"
        )
    files = list(_choose_by_metadata(folder, _list_data_files(folder), flag))
    if not files:
        raise DataError(_explain_empty(folder))
    check_all_there([path for path in files if is_tar(path)], "*")
    check_shards(files, flag=flag)
    return files


def _split_folders(folder: Path) -> list[Path]:
    """Return the folder, its `data` folder, and the sub-folders of both whose names are splits."""
    tops = [folder, *(p for p in (folder / "data",) if p.is_dir())]
    inner = [p for top in tops for p in sorted(top.iterdir()) if p.is_dir() and split_kind(p.name)]
    return [*tops, *inner]


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


def _choose_by_metadata(folder: Path, files: Sequence[Path], flag: str) -> Sequence[Path]:
    """Return the metadata files of an image folder: those with a column of file names; of other folders all data files.

    Raises:
        DataError: several in one place, one for images of several splits, or other data files next to them.
    """
    candidates = [p for p in files if p.name.startswith("metadata.") and p.suffix.lower() in READERS]
    columns = {path: names for path in candidates if (names := _column_names(path)) is not None}
    for place in dict.fromkeys(path.parent for path in columns):
        here = [path for path in columns if path.parent == place]
        if len(here) > 1:
            raise DataError(f"{place} has several metadata files: {joined(here)}. Keep one.")
    with_rows = [path for path in files if path in columns or path not in candidates]
    found = [path for path, names in columns.items() if any(map(_FILE_NAMES.fullmatch, names))]
    if not found and (not columns or len(columns) < len(with_rows)):
        return with_rows or files
    found = found or with_rows
    others = [path for path in with_rows if path not in found]
    if others:
        raise DataError(
            f"{folder} is an image folder by {joined(found)}, whose rows name images, and other data files lie in "
            f"it: {joined(others)}. Name the files to read, such as --{flag} {found[0]} (several as "
            "'{a,b}'), or move the others elsewhere."
        )
    names_splits = [p for p in sorted(folder.iterdir()) if p.is_dir() and split_kind(p.name)]
    if found[0].parent == folder and names_splits and len(found) == 1:
        raise DataError(
            f"{found[0]} would make one split of images that lie in {joined(names_splits)}. "
            "Put a metadata file of its own into each of these folders."
        )
    return found


def _column_names(path: Path) -> Sequence[str] | None:
    """Return a file's columns (of JSONL those of its first row), or None for JSON that is about the data, no rows."""
    try:
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            return tuple(next(stream_json_lines(path), ()))
        return READERS[path.suffix.lower()](path).columns
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except DataError as error:
        if path.suffix.lower() != ".json":
            raise
        logger.warning("Not taken as rows: %s", error)
        return None


def _explain_empty(folder: Path) -> str:
    inside = sorted(folder.iterdir())
    pictures = any(p.suffix.lower() in IMAGES for p in inside) or any(
        q.suffix.lower() in IMAGES for p in inside if p.is_dir() for q in p.iterdir()
    )
    if pictures:
        return (
            f"{folder} holds images, but nothing says what is asked and answered about them. Put a metadata.jsonl "
            'next to them, one line for each image: {"file_name": "0001.png", "prompt": "...", "response": "..."}.'
        )
    shown = joined(p.name + ("/" if p.is_dir() else "") for p in inside[:10])
    return (
        f"{folder} holds no data files. Looked for {', '.join(READERS)}, .tar, .tar.gz in it, in its data folder and "
        f"in folders named as splits, and for a save_to_disk folder; it holds {shown}. A sub-folder is chosen with "
        "--dataset_config_name or by naming it."
    )
