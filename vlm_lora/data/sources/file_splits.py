"""Which split each of several files belongs to: by the words of its name, then by the folders that it lies in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from itertools import chain, islice
from pathlib import Path

from vlm_lora.data.formats.tar.opening import is_tar, tar_stem
from vlm_lora.data.splits import SPLIT_NAMES, kinds_of, outer_split_word, split_words
from vlm_lora.errors import DataError

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
