"""Which rows are trained on and which are held out: split names, the seeded hold-out, sample limits."""

from __future__ import annotations

import random
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from vlm_lora.data.rows import Rows
from vlm_lora.errors import DataError

SplitKind = Literal["train", "validation", "test"]
AnySplit = TypeVar("AnySplit")
"""Whatever holds the rows of a split."""

SPLIT_NAMES: Mapping[str, SplitKind] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "validation": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "test": "test",
    "testing": "test",
}
"""What a split's (case-folded) name means."""

_SHARD = re.compile(r"-\d+-of-\d+$")


def split_word(name: str) -> str | None:
    """Return the word in a split or file name that says which split it is, or None.

    The whole name counts, else its first or last word: `train_sft`, `chartqa-val`,
    `test-00000-of-00001` and `DEV` are names of splits, `contest` is none.
    """
    folded = _SHARD.sub("", name.casefold())
    words = re.split(r"[^a-z0-9]+", folded)
    return next((word for word in (folded, words[0], words[-1]) if word in SPLIT_NAMES), None)


def split_kind(name: str) -> SplitKind | None:
    """Return what a split's or file's name means, or None where it says nothing."""
    word = split_word(name)
    return SPLIT_NAMES[word] if word else None


@dataclass(frozen=True, kw_only=True)
class Part:
    """A selection of rows: a range for all of them, else an array of positions in file order."""

    rows: Rows
    name: str
    """The split as the log names it, for example `train` or `held out from train`."""
    indices: Sequence[int]


def whole(name: str, rows: Rows) -> Part:
    """Select all rows of a split."""
    return Part(rows=rows, name=name, indices=range(len(rows)))


def pick_split(splits: Mapping[str, AnySplit], kind: SplitKind, *, where: str) -> tuple[str, AnySplit] | None:
    """Return the one split of a kind, or None.

    A name that is exactly a split's name goes before one that only begins or ends with it.

    Raises:
        DataError: Several splits are equally good.
    """
    exact = [name for name in splits if SPLIT_NAMES.get(name.casefold()) == kind]
    candidates = exact or [name for name in splits if split_kind(name) == kind]
    if len(candidates) > 1:
        raise DataError(
            f"{where} has {len(candidates)} splits that could be the {kind} split: {_listed(candidates)}. "
            + (
                "Name the one to use as a file or folder with --validation_name."
                if kind == "validation"
                else "Rename or remove all but one, or name its file with --dataset_name."
            )
        )
    return (candidates[0], splits[candidates[0]]) if candidates else None


def pick_train(splits: Mapping[str, AnySplit], *, where: str) -> tuple[str, AnySplit] | None:
    """Return the train split: the one so named, or the only split whose name says nothing.

    Raises:
        DataError: Several splits could be it.
    """
    named = pick_split(splits, "train", where=where)
    if named is not None:
        return named
    unnamed = [name for name in splits if split_kind(name) is None]
    if len(unnamed) > 1:
        raise DataError(
            f"{where} has no split named train, and several it could be: {_listed(unnamed)}. "
            "Name one file or folder with --dataset_name."
        )
    return (unnamed[0], splits[unnamed[0]]) if unnamed else None


def hold_out(name: str, rows: Rows, *, fraction: float, seed: int) -> tuple[Part, Part]:
    """Divide train rows into what is trained on and a held-out share, the same for the same seed and length.

    Returns:
        The rows to train on and the rows held out, both in file order; at least one row each.

    Raises:
        DataError: Fewer than two rows.
    """
    total = len(rows)
    if total < 2:
        raise DataError(
            f"{', '.join(rows.files)}: {total} row cannot be divided into training and validation data. "
            "Name validation data with --validation_name."
        )
    count = min(max(1, round(total * fraction)), total - 1)
    held = sorted(random.Random(seed).sample(range(total), count))
    chosen = frozenset(held)
    kept = array("q", (i for i in range(total) if i not in chosen))
    return (
        Part(rows=rows, name=name, indices=kept),
        Part(rows=rows, name=f"held out from {name}", indices=array("q", held)),
    )


def limit(part: Part, count: int | None) -> Part:
    """Keep the first `count` rows; None keeps all."""
    return Part(rows=part.rows, name=part.name, indices=part.indices[:count])


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
