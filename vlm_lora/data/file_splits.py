"""Which split each of several files belongs to: by the words of its name, then by the folders that it lies in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vlm_lora.data.splits import kinds_of, outer_split_word, split_words
from vlm_lora.data.tars.opening import is_tar, tar_stem
from vlm_lora.errors import DataError

CURE = (
    "Rename it, or name files yourself: --dataset_name FILE for what to train on (several files, each alone, with a "
    "space between), --validation_name FILE for what to evaluate on."
)


def group_by_split(files: Sequence[Path], *, root: Path) -> dict[str, list[Path]]:
    """Group files by the split that they say they belong to; where none says anything, all are `train`.

    Args:
        files: What a folder, a glob or a list stands for.
        root: A folder above all of them; its name and those above it say nothing.

    Raises:
        DataError: A file whose name or folders speak of two splits, or that says nothing where others do.
    """
    said = {path: _read_split(path, root) for path in files}
    doubtful = [path for path in files if len(said[path]) > 1]
    if doubtful:
        words = said[doubtful[0]]
        if any(other != words for other in said.values()):
            others = [path for path in files if path != doubtful[0]]
            raise DataError(
                f"{doubtful[0]} is called {' and '.join(words)}, so nothing says to which split it belongs, beside "
                f"{_shortened(others)}. {CURE}"
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
            "what is no data elsewhere; or name files yourself: --dataset_name FILE for what to train on (several "
            "files, each alone, with a space between), --validation_name FILE for what to evaluate on."
        )
    groups: dict[str, list[Path]] = {}
    for path in files:
        groups.setdefault(said[path][0], []).append(path)
    return groups


def split_of_one(path: Path) -> Mapping[str, Sequence[Path]]:
    """Return the split of a file that is named by hand: `train`, unless it is called as another one is."""
    return {outer_split_word(_stem(path)) or "train": [path]}


def _read_split(path: Path, root: Path) -> tuple[str, ...]:
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
            raise DataError(f"{path} is called {nearest[0]} and lies in a folder that is called {words[0]}. {CURE}")
    return (nearest[0],)


def _stem(path: Path) -> str:
    return tar_stem(path) if is_tar(path) else path.stem


def _shortened(paths: Iterable[Path], most: int = 5) -> str:
    names = [str(path) for path in paths]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
