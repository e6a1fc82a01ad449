"""Which rows a run reads, and in what order: a hash over what each says, and marks by which a changed one is found."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from vlm_lora.batching.row_table import RowTable
from vlm_lora.data.dataset import ConversationDataset, Splits
from vlm_lora.data.formats.arrow_files import HeldOpen
from vlm_lora.data.split_parts import split_parts
from vlm_lora.data.wording import counted
from vlm_lora.training.identity.contents import fingerprint

MARKS = 4096
"""Marks of a data set: one for each row, or of a larger one for each of so many stretches of rows."""
FILES = 100
"""Files of a data set that are kept by name."""
_WHOLE = 2**20
"""Bytes up to which a data file is read whole where its rows were not."""


@dataclass(frozen=True, kw_only=True)
class RowsChange:
    """A data set whose rows are otherwise."""

    name: str
    """As `split_parts` has it: `train`, `validation`, `train 2`."""
    text: str
    """What differs, in words."""

    @property
    def trained(self) -> bool:
        """Whether the rows are trained on."""
        return self.name.split(" ")[0] == "train"


def describe_rows(splits: Splits, tables: Mapping[str, RowTable]) -> dict[str, Any]:
    """Return what tells whether the rows of a run have changed, by data set.

    Args:
        splits: the rows that the run uses.
        tables: what the check found of each data set; one that is not there was not read.

    Returns:
        By data set `rows` (how many), `files` (path, bytes), and `hash` and `marks` of what the rows say, in order. A
        data set that was not read before training (`--streaming`, `--skip_check`) has no hash: its files are
        fingerprinted.
    """
    found: dict[str, Any] = {}
    for name, part in split_parts(splits).items():
        table = tables.get(name)
        streamed = splits.stream is not None and name.startswith("train")
        found[name] = {
            "source": part.name,
            "rows": None if streamed else len(part),
            **_hashes(table),
            "files": _files(part, read=table is not None),
        }
    return found


def _hashes(table: RowTable | None) -> dict[str, Any]:
    if table is None:
        return {"hash": None, "marks": None}
    content = np.ascontiguousarray(table.rows["content"])
    return {"hash": table.fingerprint(), "marks": b64encode(_marks(content).tobytes()).decode("ascii")}


def _marks(content: Any) -> Any:
    """Return at most `MARKS` uint32 for `(R, 2)` uint64."""
    if len(content) <= MARKS:
        return content[:, 0].astype("<u4")
    stretches = np.array_split(content, MARKS)
    digests = b"".join(blake2b(stretch.tobytes(), digest_size=4).digest() for stretch in stretches)
    return np.frombuffer(digests, "<u4")


def _files(part: ConversationDataset, *, read: bool) -> list[dict[str, Any]]:
    held = [Path(file) for table in part.rows.tables if isinstance(table, HeldOpen) for file in table.files]
    named = [Path(name) for name in part.rows.files]
    paths = list(dict.fromkeys(path for path in (*held, *named) if path.is_file()))[:FILES]
    return [
        {"path": str(path), **({"bytes": path.stat().st_size} if read else fingerprint(path, whole=_WHOLE))}
        for path in paths
    ]


def compare_rows(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    source: Callable[[str, int], str],
    *,
    then: str,
    moved: bool = False,
) -> list[RowsChange]:
    """Return the data sets whose rows differ from those of an earlier run.

    Args:
        before: as `describe_rows` returned it then.
        now: the same, of this run.
        source: returns file and row of row `index` of data set `name` of this run.
        then: what to call the earlier run: `in the checkpoint`.
        moved: whether the settings that name the rows differ: then what cannot be compared counts as different.
    """
    found = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if new is None or old is None:
            text = "in this run alone" if old is None else f"{then} alone"
        else:
            text = _difference(name, old, new, source, then, moved=moved)
        change = RowsChange(name=name, text=f"{name}: {text}")
        # Rows to measure on come and go with `--do_eval`.
        if text and (change.trained or None not in (old, new)):
            found.append(change)
    return found


def _difference(
    name: str,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    source: Callable[[str, int], str],
    then: str,
    *,
    moved: bool,
) -> str:
    """Say what differs; nothing where nothing does, or nothing can be compared."""
    if None in (old.get("hash"), new.get("hash")):
        return _of_files(old, new, then) or (_not_the_same(old, new) if moved else "")
    counts = int(old["rows"]), int(new["rows"])
    if old["hash"] == new["hash"]:
        return ""
    first, second = _read(old.get("marks")), _read(new.get("marks"))
    if counts[0] != counts[1]:
        said = f"{counted(counts[0], 'row')} {then}, {counts[1]} now"
        if max(counts) > MARKS:
            return said
        place = next((place for place, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), None)
        if place is None:
            place = min(counts)
            return f"{said}; the first {place} are the same"
        return f"{said}; the first that differs is {source(name, place)}"
    if len(first) == len(second) == counts[0] and sorted(first) == sorted(second):
        return f"the same {counts[0]} rows in another order"
    places = [place for place, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]]
    if not places:
        return f"{counted(counts[0], 'row')} with another content"
    if counts[0] <= MARKS:
        count = len(places) - 1
        others = f" and {counted(count, 'other row')}" if count else ""
        return f"{source(name, places[0])}{others} of {counts[0]} {'say' if others else 'says'} something else"
    stretches = np.array_split(np.arange(counts[0]), MARKS)
    last = stretches[places[0]][-1]
    return (
        f"a row from {source(name, int(stretches[places[0]][0]))} to {source(name, int(last))} says something else"
        f"{' (and rows elsewhere)' if len(places) > 1 else ''}"
    )


def _of_files(old: Mapping[str, Any], new: Mapping[str, Any], then: str) -> str:
    """Compare data sets of which one at least was not read, by their files."""
    counts = old.get("rows"), new.get("rows")
    if None not in counts and counts[0] != counts[1]:
        return f"{counted(int(counts[0] or 0), 'row')} {then}, {counts[1]} now"
    known = {Path(str(file["path"])).name: file for file in old.get("files") or ()}
    for file in new.get("files") or ():
        before = known.get(Path(str(file["path"])).name)
        if before is not None and any(before[key] != file[key] for key in file.keys() & before.keys() - {"path"}):
            return f"the file {file['path']} has another content"
    return ""


def _not_the_same(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Say what stands against two data sets at different places having the same files in the same order."""
    marks = [
        [(file.get("sha256"), file.get("sampled_sha256")) for file in each.get("files") or ()] for each in (old, new)
    ]
    if any(mark == (None, None) for each in marks for mark in each) or not all(marks):
        return (
            "whether these are the same rows is not known, because not both runs read them before training "
            "(--streaming, --skip_check)"
        )
    if max(map(len, marks)) >= FILES:
        return f"whether these are the same rows is not known: of {FILES} files or more not all are compared"
    return "" if marks[0] == marks[1] else "the files have another content"


def _read(marks: Any) -> list[int]:
    return [] if not isinstance(marks, str) else [int(mark) for mark in np.frombuffer(b64decode(marks), "<u4")]
