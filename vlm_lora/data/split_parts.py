"""The data sets that a run's splits are made of, by name: one for a split, or each of a mixture's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from vlm_lora.data.dataset import ConversationDataset, Conversations, Splits
from vlm_lora.data.mixture import Mixture


def split_parts(splits: Splits) -> dict[str, ConversationDataset]:
    """Return the data sets by name: `train` and `validation`, or `train 1`, `train 2`, ... where several are mixed."""
    given = {"train": splits.train, "validation": splits.validation}
    return {name: part for split, rows in given.items() for name, part in _named(split, rows).items()}


def trained_parts(splits: Splits) -> tuple[str, ...]:
    """Return the names of the data sets that are trained on, in the order of a mixture's members."""
    return tuple(_named("train", splits.train))


def with_parts(splits: Splits, parts: Mapping[str, ConversationDataset]) -> Splits:
    """Return the splits with other data sets under the names of `split_parts`; weights stay."""
    return replace(
        splits, train=_put("train", splits.train, parts), validation=_put("validation", splits.validation, parts)
    )


def places(split: str, rows: Conversations) -> Iterator[tuple[str, int, int]]:
    """Yield for each row of a split's first epoch its data set, its number there, and how often it came before."""
    names = list(_named(split, rows))
    for index in range(len(rows)):
        member, place, repeat = rows.find(index, 0) if isinstance(rows, Mixture) else (0, index, 0)
        yield names[member], place, repeat


def _named(split: str, rows: Conversations | None) -> dict[str, ConversationDataset]:
    if rows is None:
        return {}
    if isinstance(rows, Mixture):
        return {f"{split} {number}": part for number, part in enumerate(rows.members, start=1)}
    return {split: rows}


def _put(split: str, rows: Conversations | None, parts: Mapping[str, ConversationDataset]) -> Conversations | None:
    kept = list(_named(split, rows))
    if isinstance(rows, Mixture):
        return rows.with_members([parts[name] for name in kept])
    return parts[kept[0]] if kept else None
