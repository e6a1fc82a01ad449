"""The data report: what all rows together are, as frozen figures that terminal, JSON and page show alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vlm_lora.batching.row_table import BadRow, RowTable
from vlm_lora.data.conversation import RowSource
from vlm_lora.data.dataset import ConversationDataset
from vlm_lora.preflight.faults import CURES

BINS = 20
"""Bars of a histogram, at most."""

EXTREMES = 5
"""Rows named as the longest, as those with the largest images, and groups of duplicates."""

GROUP = 4
"""Rows named of one group of duplicates."""


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """How whole numbers are spread."""

    count: int
    total: int
    least: int
    median: int
    high: int
    """95 % of the values are at most this."""
    most: int
    edges: tuple[int, ...]
    """Bar i counts the values from `edges[i]` up to, not including, `edges[i + 1]`."""
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: Any) -> Distribution:
        """Return the distribution of `(n,)` int64; all figures are 0 for none."""
        if not len(values):
            return cls(count=0, total=0, least=0, median=0, high=0, most=0, edges=(), counts=())
        least, most = int(values.min()), int(values.max())
        step = -(-(most - least + 1) // BINS)
        edges = np.arange(least, most + 1 + step, step)
        counts, _ = np.histogram(values, bins=edges)
        median, high = np.percentile(values, (50, 95), method="higher")
        return cls(
            count=len(values),
            total=int(values.sum()),
            least=least,
            median=int(median),
            high=int(high),
            most=most,
            edges=tuple(int(edge) for edge in edges),
            counts=tuple(int(count) for count in counts),
        )


@dataclass(frozen=True, kw_only=True)
class NamedRow:
    """A row worth a look, and the figure it is named for."""

    file: str
    row: int | None
    key: str | None = None
    """Its key within a tar."""
    line: int | None = None
    """The line of a text file that it begins in, counting from 1."""
    figure: str


@dataclass(frozen=True, kw_only=True)
class FaultyRow:
    """A row that training refuses."""

    split: str
    index: int
    """Its number within the split, counting from 0."""
    file: str
    row: int | None
    """Its number within the file, counting from 0."""
    key: str | None = None
    """Its key within a tar."""
    line: int | None = None
    """The line of a text file that it begins in, counting from 1."""
    kind: str
    reason: str
    cure: str

    def __str__(self) -> str:
        return f"{RowSource(file=self.file, row=self.row, key=self.key, line=self.line)}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """One split. All figures are of its good rows."""

    name: str
    """As the log names it."""
    rows: int
    bad: int
    layout: str
    columns: tuple[str, ...]
    """Which column was taken as what, and why."""
    tokens: Distribution
    supervised: Distribution
    pictures: Distribution
    """Images a row."""
    image_tokens: Distribution
    """Tokens an image, of those whose tokens can be told from those of the image next to them."""
    widths: Distribution
    heights: Distribution
    unanswered: int
    """Rows with an empty answer, which the model learns to give."""
    unanswered_rows: tuple[NamedRow, ...]
    """The first of them."""
    repeated: int
    """Rows that say the same as an earlier row of this split."""
    repeats: tuple[tuple[NamedRow, ...], ...]
    """The first groups of such rows, the first rows of each."""
    longest: tuple[NamedRow, ...]
    largest: tuple[NamedRow, ...]
    """Rows with the most pixels in one image."""

    @property
    def supervised_share(self) -> float:
        """Share of all tokens that the model must produce."""
        return self.supervised.total / self.tokens.total if self.tokens.total else 0.0


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """Everything that the check found."""

    model: str
    data: str
    longest: int | None
    """The limit of a row in tokens."""
    image_size: str
    """How large images are shown, in words."""
    splits: Mapping[str, SplitReport]
    """By `train` and `validation`; with several data sets `train 1`, `train 2`, ...."""
    leaked: int
    """Validation rows that say the same as a row trained on."""
    leaks: tuple[NamedRow, ...]
    """The first of them."""
    bad: tuple[FaultyRow, ...]
    """All of them, in order."""

    @property
    def rows(self) -> int:
        """Rows of all splits."""
        return sum(split.rows for split in self.splits.values())

    @property
    def kinds(self) -> Mapping[str, int]:
        """Number of bad rows by kind of fault, the most frequent first."""
        counts: dict[str, int] = {}
        for row in self.bad:
            counts[row.kind] = counts.get(row.kind, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def to_mapping(self) -> dict[str, Any]:
        """Return the report as JSON values, shares and sums included."""
        splits = {
            name: {**asdict(split), "supervised_share": split.supervised_share} for name, split in self.splits.items()
        }
        sums = {"ok": not self.bad, "rows": self.rows, "bad_rows": len(self.bad), "bad_rows_by_kind": dict(self.kinds)}
        return {**asdict(self), **sums, "splits": splits}


def build_report(
    model: str,
    data: str,
    longest: int | None,
    image_size: str,
    found: Mapping[str, tuple[ConversationDataset, RowTable]],
) -> DataReport:
    """Put what the row tables of all splits say together."""
    leaked, leaks = _leaks(found)
    return DataReport(
        model=model,
        data=data,
        longest=longest,
        image_size=image_size,
        splits={name: _split_report(rows, table) for name, (rows, table) in found.items()},
        leaked=leaked,
        leaks=leaks,
        bad=tuple(
            _faulty(name, rows.source(row.index), row) for name, (rows, table) in found.items() for row in table.bad
        ),
    )


def _faulty(split: str, source: RowSource, bad: BadRow) -> FaultyRow:
    return FaultyRow(
        split=split,
        index=bad.index,
        file=source.file,
        row=source.row,
        key=source.key,
        line=source.line,
        kind=bad.kind,
        reason=bad.reason,
        cure=CURES[bad.kind],
    )


def _split_report(rows: ConversationDataset, table: RowTable) -> SplitReport:
    good = table.good()
    repeated, groups = _repeats(_contents(table), good)
    tokens, supervised = table.longest("tokens"), table.longest("supervised")
    unanswered = np.flatnonzero(table.rows["unanswered"])
    widths, heights = (table.images[side].astype(np.int64) for side in ("width", "height"))
    image_tokens = table.images["tokens"].astype(np.int64)
    owner = table.image_owners()
    longest = _largest(tokens)
    biggest = _largest(widths * heights)
    return SplitReport(
        name=rows.name,
        rows=len(table),
        bad=len(table.bad),
        layout=table.layout,
        columns=rows.schema.reasons,
        tokens=Distribution.of(tokens[good]),
        supervised=Distribution.of(supervised[good]),
        pictures=Distribution.of(table.rows["images"].astype(np.int64)[good]),
        image_tokens=Distribution.of(image_tokens[image_tokens > 0]),
        widths=Distribution.of(widths),
        heights=Distribution.of(heights),
        unanswered=len(unanswered),
        unanswered_rows=tuple(_named(rows, int(at), "") for at in unanswered[:EXTREMES]),
        repeated=repeated,
        repeats=tuple(tuple(_named(rows, index, "") for index in group) for group in groups),
        longest=tuple(_named(rows, index, f"{tokens[index]} tokens") for index in longest if good[index]),
        largest=tuple(_named(rows, int(owner[at]), f"{widths[at]}x{heights[at]} pixels") for at in biggest),
    )


def _contents(table: RowTable) -> Any:
    """Return the rows' hashes as `(R,)` of two numbers, which numpy compares as one value."""
    pairs = np.ascontiguousarray(table.rows["content"])
    return pairs.view([("high", pairs.dtype), ("low", pairs.dtype)])[:, 0]


def _named(rows: ConversationDataset, index: int, figure: str) -> NamedRow:
    source = rows.source(index)
    return NamedRow(file=source.file, row=source.row, key=source.key, line=source.line, figure=figure)


def _largest(values: Any) -> list[int]:
    """Return where the largest values are, the largest first, the earlier of equal ones first."""
    return [int(at) for at in np.argsort(-values, kind="stable")[:EXTREMES]]


def _repeats(contents: Any, good: Any) -> tuple[int, Sequence[Sequence[int]]]:
    """Count the rows that say the same as an earlier one; return the first groups as well."""
    places = np.flatnonzero(good)
    values, first, counts = np.unique(contents[places], return_index=True, return_counts=True)
    several = np.flatnonzero(counts > 1)
    earliest = several[np.argsort(first[several], kind="stable")][:EXTREMES]
    groups = [[int(at) for at in places[contents[places] == values[which]][:GROUP]] for which in earliest]
    return int((counts[several] - 1).sum()), groups


def _leaks(found: Mapping[str, tuple[ConversationDataset, RowTable]]) -> tuple[int, tuple[NamedRow, ...]]:
    trained = [_contents(table)[table.good()] for name, (_, table) in found.items() if name.startswith("train")]
    if not trained:
        return 0, ()
    known = np.concatenate(trained)
    count, named = 0, []
    for name, (rows, table) in found.items():
        if name.startswith("validation"):
            leaked = np.flatnonzero(np.isin(_contents(table), known) & table.good())
            count += len(leaked)
            named += [_named(rows, int(at), "") for at in leaked[:EXTREMES]]
    return count, tuple(named[:EXTREMES])
