"""Which files a name stands for, and by which split: an existing file or folder, a glob, a list, else a Hub id.

1. Names of many files in one word: `{0000..0007}`, `{a,b}`, and lists separated by commas. Nothing is ever run:
   `pipe:` commands, which WebDataset knows, are refused.
2. A file belongs to a split by the words of its name, then by the folders that it lies in.
3. None is opened but those that may be the metadata of an image folder.
"""

from __future__ import annotations

import glob
import itertools
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import chain, islice
from pathlib import Path

from vlm_lora.data.formats.arrow_files import read_arrow, read_parquet
from vlm_lora.data.formats.csv_files import read_csv
from vlm_lora.data.formats.json_files import read_json, read_json_lines, stream_json_lines
from vlm_lora.data.formats.rows import Table
from vlm_lora.data.formats.tar.index_files import is_index_file
from vlm_lora.data.formats.tar.opening import check_all_there, is_tar, tar_stem
from vlm_lora.data.images.formats import SUFFIXES
from vlm_lora.data.splits import SPLIT_NAMES, kinds_of, outer_split_word, split_kind, split_words
from vlm_lora.data.wording import joined
from vlm_lora.errors import DataError

MOST_NAMES = 1_000_000
"""More names than this are a slip of the keyboard."""

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_PADDED = re.compile(r"-?0\d")


def expand(text: str, *, flag: str) -> list[str]:
    """Return the names that a word stands for; a word without braces and commas is one name.

    >>> expand("s/{08..11}.tar,t/{a,b}.tar", flag="dataset_name")
    ['s/08.tar', 's/09.tar', 's/10.tar', 's/11.tar', 't/a.tar', 't/b.tar']

    Raises:
        DataError: A command (`pipe:`), an empty name, a brace without its partner, or far too many names.
    """
    names = []
    for part in split_commas(text, flag=flag):
        if part.strip().lower().startswith("pipe:"):
            raise DataError(
                f"--{flag} {part}: commands are not run. Let the command write its output to a file, and name the file."
            )
        if not part.strip():
            raise DataError(f"--{flag} {text}: a name between the commas is empty.")
        names += list(itertools.islice(_expand(part.strip(), text, flag), MOST_NAMES + 1))
        if len(names) > MOST_NAMES:
            raise DataError(f"--{flag} {text}: stands for more than {MOST_NAMES} names.")
    return names


def split_commas(text: str, *, flag: str) -> list[str]:
    """Split at the commas that stand outside braces."""
    parts, depth, start = [], 0, 0
    for place, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            break
        if character == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    if depth:
        raise DataError(f"--{flag} {text}: a brace has no partner. Ranges are written {{0000..0007}}, lists {{a,b}}.")
    return [*parts, text[start:]]


def _expand(name: str, text: str, flag: str) -> Iterator[str]:
    opening = name.find("{")
    if opening < 0:
        yield name
        return
    depth = 0
    for closing in range(opening, len(name)):
        depth += {"{": 1, "}": -1}.get(name[closing], 0)
        if depth == 0:
            break
    head, body, tail = name[:opening], name[opening + 1 : closing], name[closing + 1 :]
    for middle in _choices(body, text, flag):
        for rest in _expand(tail, text, flag):
            yield f"{head}{middle}{rest}"


def _choices(body: str, text: str, flag: str) -> Iterator[str]:
    """Yield what one pair of braces stands for."""
    span = _RANGE.fullmatch(body)
    if span:
        first, last = span.groups()
        width = max(len(first), len(last)) if _PADDED.match(first) or _PADDED.match(last) else 0
        low, high = int(first), int(last)
        step = 1 if high >= low else -1
        for number in range(low, high + step, step):
            yield f"{number:0{width}d}"
        return
    parts = split_commas(body, flag=flag)
    if len(parts) < 2:
        raise DataError(f"--{flag} {text}: {{{body}}} is neither a range such as {{0000..0007}} nor a list {{a,b}}.")
    for part in parts:
        yield from _expand(part, text, flag)


SHOWN = 5
"""Files that a message names."""

_SHARD = re.compile(r"(?P<head>.*?)(?P<number>\d+)-of-(?P<count>\d+)(?!\d)(?P<tail>.*)")


def group_by_split(files: Sequence[Path], *, root: Path, flag: str = "dataset_name") -> dict[str, list[Path]]:
    """Group files by the split that they say they belong to; where none says anything, all are `train`.

    Args:
        files: What a folder, a glob or a list stands for.
        root: A folder above all of them; its name and those above it say nothing.
        flag: The flag they were named by, for messages.

    Raises:
        DataError: A file whose name or folders speak of two splits, or that says nothing where others do.
    """
    said = {path: _read_split(path, root, flag) for path in files}
    doubtful = [path for path in files if len(said[path]) > 1]
    if doubtful:
        words = said[doubtful[0]]
        if any(other != words for other in said.values()):
            others = [path for path in files if path != doubtful[0]]
            raise DataError(
                f"{doubtful[0]} is called {' and '.join(words)}, so nothing says to which split it belongs, next to "
                f"{_shortened(others)}. Rename it, or {_each_alone(files, flag)}"
            )
        return {"train" if "train" in kinds_of(words) else words[0]: list(files)}
    unnamed = [path for path in files if not said[path]]
    if len(unnamed) == len(files):
        return {"train": unnamed}
    if unnamed:
        named = [path for path in files if said[path]]
        raise DataError(
            f"Nothing says to which split {_shortened(unnamed)} belong{'s' if len(unnamed) == 1 else ''}, and other "
            f"files say it by their names: {_shortened(named)}. Put train, validation or test into each name, or move "
            f"what is no data elsewhere; or {_each_alone(files, flag)}"
        )
    groups: dict[str, list[Path]] = {}
    for path in files:
        groups.setdefault(said[path][0], []).append(path)
    return groups


def split_of_one(path: Path) -> Mapping[str, Sequence[Path]]:
    """Return the split of a file that is named by hand: `train`, unless it is called as another one is."""
    return {outer_split_word(_stem(path)) or "train": [path]}


def check_shards(files: Iterable[Path], pattern: str = "*", *, flag: str = "dataset_name") -> None:
    """Check that of files called `-00000-of-00004` all four are there; they may be counted from 0 or from 1.

    Args:
        files: What was found in a folder or by a glob.
        pattern: Of the names that the user asked for; those that do not match it may be missing.
        flag: The flag they were named by, for messages.

    Raises:
        DataError: Names the missing ones.
    """
    series: dict[tuple[Path, str, str, str], list[re.Match[str]]] = {}
    for path in files:
        match = _SHARD.fullmatch(path.name)
        if match:
            key = (path.parent, match["head"], match["count"], path.suffix)
            series.setdefault(key, []).append(match)
    for (folder, head, total, _), found in series.items():
        numbers = {int(match["number"]) for match in found}
        width, tail = len(found[0]["number"]), found[0]["tail"]
        ends = {0, int(total)}
        wanted = (number for number in range(1, int(total)) if number not in numbers)
        # Where neither end is there, nothing says whether they are counted from 0 or from 1.
        slots = chain([] if ends & numbers else [sorted(ends)], ([number] for number in wanted))
        either = ([f"{head}{number:0{width}d}-of-{total}{tail}" for number in slot] for slot in slots)
        asked = ([name for name in names if fnmatch(name, pattern)] for names in either)
        missing = list(islice((" or ".join(names) for names in asked if names), SHOWN))
        if missing:
            more = ", ..." if len(missing) == SHOWN else ""
            raise DataError(
                f"{folder}: of {int(total)} files called {head}...-of-{total} {len(numbers)} are there; missing: "
                f"{', '.join(missing)}{more}. Copy them, or name the files to do without them, such as "
                f"--{flag} '{folder}/{found[0].string}' (several as '{{a,b}}')."
            )


def _read_split(path: Path, root: Path, flag: str) -> tuple[str, ...]:
    """Return the word that says a file's split, nothing, or all words where its name is of two splits.

    Raises:
        DataError: Its name says one split and a folder above it another.
    """
    above = path.absolute().relative_to(root.absolute()).parts[:-1]
    telling = [words for words in map(split_words, (_stem(path), *reversed(above))) if words]
    if not telling:
        return ()
    nearest, *further = telling
    kinds = kinds_of(nearest)
    if len(kinds) > 1:
        return tuple(dict.fromkeys(nearest))
    for words in further:
        if not kinds <= kinds_of(words):
            raise DataError(
                f"{path} is called {nearest[0]} and lies in a folder that is called {words[0]}. Rename it, or "
                f"{_each_alone([path], flag)}"
            )
    return (nearest[0],)


def _each_alone(files: Sequence[Path], flag: str) -> str:
    """Return what to type so that each file's split is settled without its being renamed."""
    if flag != "dataset_name":
        return f"name one file alone: --{flag} FILE, whatever it is called."
    held = [path for path in files if SPLIT_NAMES[next(iter(split_of_one(path)))] != "train"]
    but = f", but {_shortened(held)} only under another name" if held else ""
    return (
        f"name files one by one: --dataset_name FILE for what to train on (several with a space between{but}), "
        "--validation_name FILE for what to evaluate on, whatever it is called."
    )


def _stem(path: Path) -> str:
    return tar_stem(path) if is_tar(path) else path.stem


def _shortened(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths[:SHOWN])) + (f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else "")


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
    pictures = any(p.suffix.lower() in SUFFIXES for p in inside) or any(
        q.suffix.lower() in SUFFIXES for p in inside if p.is_dir() for q in p.iterdir()
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
