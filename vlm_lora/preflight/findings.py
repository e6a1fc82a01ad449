"""What is known of rows after each was read once: numbers for the good ones, the reason for the bad ones.

A hundred thousand rows take a few megabytes: numbers lie in arrays, and only bad rows are objects.
"""

from __future__ import annotations

import base64
from array import array
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vlm_lora.errors import DataError, ImageError, RenderingError, TooLongError

LONGEST_REASON = 600
"""Characters of a reason that are kept."""

TOO_LONG = "too long"
"""The kind that `--on_overflow` is about."""

CURES: Mapping[str, str] = {
    "picture": "Repair or replace the image, fix the path, or take the row out.",
    TOO_LONG: "Raise --max_length, shorten or split the row, use smaller images, or see --on_overflow.",
    "labels": "Put the turns and images right so that the model's chat template can write them, or take the row out.",
    "row": "Put the row's values right, or take the row out.",
}
"""By kind of fault: what to do about it."""


def kind_of(error: DataError) -> str:
    """Return the kind of fault, a key of `CURES`."""
    kinds = ((TooLongError, TOO_LONG), (RenderingError, "labels"), (ImageError, "picture"))
    return next((name for owner, name in kinds if isinstance(error, owner)), "row")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One row as a worker found it."""

    tokens: int = 0
    supervised: int = 0
    unanswered: bool = False
    """Whether a turn of the assistant says nothing: the model learns to say nothing there."""
    sizes: tuple[tuple[int, int], ...] = ()
    """Width and height of each image in pixels, as loaded."""
    content: int = 0
    """64-bit hash of roles, texts and pixels: equal for rows that say the same."""
    stamp: int = 0
    """64-bit hash of its image files' paths, sizes and times; 0 where it names no file."""
    kind: str = ""
    """A key of `CURES`; empty for a good row, and all numbers are 0 for a bad one."""
    reason: str = ""
    """What is wrong, without file and row."""


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that training would refuse."""

    index: int
    """Its number within the split, counting from 0."""
    kind: str
    reason: str

    @property
    def cure(self) -> str:
        """What to do about it."""
        return CURES[self.kind]


class Findings:
    """What was found in the rows of one split, in order; grows by `add`."""

    ARRAYS: Mapping[str, str] = {
        "tokens": "I",
        "supervised": "I",
        "unanswered": "B",
        "pictures": "I",
        "contents": "Q",
        "stamps": "Q",
        "widths": "I",
        "heights": "I",
    }
    """Name to type code. Widths and heights have one value for each image, the others one for each row."""

    def __init__(self) -> None:
        self.arrays: dict[str, array[int]] = {name: array(code) for name, code in self.ARRAYS.items()}
        self.bad: list[BadRow] = []

    def __len__(self) -> int:
        return len(self.arrays["tokens"])

    def add(self, finding: Finding) -> None:
        """Add the next row."""
        if finding.kind:
            reason = finding.reason
            shown = reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]}..."
            self.bad.append(BadRow(index=len(self), kind=finding.kind, reason=shown))
        row = {
            "tokens": finding.tokens,
            "supervised": finding.supervised,
            "unanswered": int(finding.unanswered),
            "pictures": len(finding.sizes),
            "contents": finding.content,
            "stamps": finding.stamp,
        }
        for name, value in row.items():
            self.arrays[name].append(value)
        for width, height in finding.sizes:
            self.arrays["widths"].append(width)
            self.arrays["heights"].append(height)

    def numbers(self, name: str) -> Any:
        """Return one array as numpy's, `(rows,)` or `(pictures,)`, int64 (uint64 for hashes)."""
        return np.asarray(self.arrays[name], dtype=np.uint64 if self.ARRAYS[name] == "Q" else np.int64)

    def good(self) -> Any:
        """Return `(rows,)` bool: the rows that can be used."""
        mask = np.ones(len(self), dtype=bool)
        mask[[row.index for row in self.bad]] = False
        return mask

    def to_mapping(self) -> dict[str, Any]:
        """Return the findings as JSON values."""
        packed = {name: base64.b64encode(values.tobytes()).decode("ascii") for name, values in self.arrays.items()}
        return {"arrays": packed, "bad": [asdict(row) for row in self.bad]}

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> Findings:
        """Return the findings that `to_mapping` wrote on a machine of the same byte order."""
        found = cls()
        for name, values in found.arrays.items():
            values.frombytes(base64.b64decode(content["arrays"][name]))
        found.bad = [BadRow(**row) for row in content["bad"]]
        return found
