"""Which rows are trained on and which are held out: split names, the seeded hold-out, sample limits."""

from __future__ import annotations

import random
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from vlm_lora.data.formats.rows import Rows
from vlm_lora.data.wording import quoted
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
    "testdev": "test",
}
"""What a split's (case-folded) name means."""

_SHARD = re.compile(r"\d+-of-\d+$")
_WORD = re.compile(r"[^\W\d_]+")
_NAME = re.compile("|".join(sorted(SPLIT_NAMES, key=len, reverse=True)))
_JOINED = re.compile(f"(?:{_NAME.pattern})+")


def split_words(name: str) -> list[str]:
    """Return the words in a name that say which split it is, in their order.

    Words are parted by anything that is no letter, as in the patterns of Hugging Face `datasets`: `coco_val2014` and
    `cc3m-train-0000` hold one, `contest` and `evaluate` none, `train_val` and `trainval` two. `test-dev` is `test`.
    """
    found: list[str] = []
    before = ""
    for word in _WORD.findall(name.casefold()):
        found += [] if (before, word) == ("test", "dev") else _said_by(word)
        before = word
    return found


def _said_by(word: str) -> list[str]:
    if word in SPLIT_NAMES:
        return [word]
    return _NAME.findall(word) if _JOINED.fullmatch(word) else []


def kinds_of(words: Iterable[str]) -> set[SplitKind]:
    """Return what the words of `split_words` mean together."""
    return {SPLIT_NAMES[word] for word in words}


def outer_split_word(name: str) -> str | None:
    """Return a name's first or last word, parted as by `split_words`, where that says which split it is, or None.

    This is for a file that is named by hand: `test.jsonl` and `instances_val2017.jsonl` are of a split,
    `my_test_set.jsonl` may be anything. Of several words the first one counts: `train_val` is `train`.
    """
    words = _WORD.findall(_SHARD.sub("", name.casefold()))
    if words[-2:] == ["test", "dev"]:
        words.pop()
    return next((said for word in (*words[:1], *words[-1:]) for said in _said_by(word)), None)


def split_kind(name: str) -> SplitKind | None:
    """Return what a split's name means by the first of its words that says anything, or None."""
    words = split_words(name)
    return SPLIT_NAMES[words[0]] if words else None


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

    A name that is exactly a split's name goes before one that only holds it.

    Raises:
        DataError: Several splits are equally good.
    """
    exact = [name for name in splits if SPLIT_NAMES.get(name.casefold()) == kind]
    candidates = exact or [name for name in splits if split_kind(name) == kind]
    if len(candidates) > 1:
        raise DataError(
            f"{where} has {len(candidates)} splits that could be the {kind} split: {quoted(candidates)}. "
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
        DataError: Several splits could be it, or its name says that it holds another one too.
    """
    named = pick_split(splits, "train", where=where)
    if named is not None:
        _refuse_overlap(named[0], splits, where)
        return named
    unnamed = [name for name in splits if split_kind(name) is None]
    if len(unnamed) > 1:
        raise DataError(
            f"{where} has no split named train, and several it could be: {quoted(unnamed)}. "
            "Name one file or folder with --dataset_name."
        )
    return (unnamed[0], splits[unnamed[0]]) if unnamed else None


def _refuse_overlap(train: str, splits: Iterable[str], where: str) -> None:
    """Refuse to train on a split such as `train_val` next to one such as `val`, whose rows it may hold."""
    held = kinds_of(split_words(train)) - {"train"}
    others = [name for name in splits if name != train and split_kind(name) in held]
    if others:
        raise DataError(
            f"{where}: by its name the split '{train}' may hold the rows of {quoted(others)} next to it. Name the "
            "files to train on with --dataset_name and those to evaluate on with --validation_name."
        )


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
