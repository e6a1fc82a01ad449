"""JSON answers: whether an answer is JSON, and how many fields it shares with the expected one.

1. An answer is valid where it is one JSON value, by RFC 8259 (no NaN). What stands around the JSON of an accepted
   answer may stand around it too, and may part several values: tags of tool calls, words that introduce it; and so may
   the fences of a Markdown block. Other words may not.
2. Fields are the leaves: pairs of a path of keys and a value. Places in a list are left out of the path, as Donut's
   JSONParseEvaluator has it, so that the order of a list's items does not count; equal fields count as often as they
   are there. Values are equal where texts are letter by letter (white space at the ends aside), numbers by value.
3. The F1 is that of all rows' fields together; the best accepted answer counts. Rows whose accepted answers are not
   JSON are left out of it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlm_lora.metrics.statistics import Counted, Sums, precision_recall_f1, ratio

_FENCES = frozenset({"```json", "```JSON", "```"})
_STARTS = re.compile(r"[\[{]")


class Read(NamedTuple):
    """A text taken apart."""

    values: tuple[Any, ...]
    """Its JSON values, in order."""
    around: frozenset[str]
    """The words before, between and behind them."""


def read_json(text: str) -> Read:
    """Find the JSON in a text: the whole of it, else every object and list in it."""
    try:
        return Read((_DECODER.decode(text),), frozenset())
    except (ValueError, RecursionError):
        values: list[Any] = []
    around: list[str] = []
    place = rest = 0
    while (start := _STARTS.search(text, place)) is not None:
        try:
            value, end = _DECODER.raw_decode(text, start.start())
        except ValueError:
            place = start.end()
            continue
        except RecursionError:
            break  # nested as deep from the next bracket on, and so on
        values.append(value)
        around += text[rest : start.start()].split()
        place = rest = end
    return Read(tuple(values), frozenset((*around, *text[rest:].split())))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def is_json(text: str) -> bool:
    """Tell whether a text is one JSON object or list, or several between marks such as those of tool calls."""
    read = read_json(text)
    return bool(read.values) and all(isinstance(value, Mapping | list) for value in read.values)


def count(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Counted:
    """Count for each row: valid or not, 1, shared fields, generated ones, expected ones, whether fields are known."""
    found = [_count_row(generated, accepted) for generated, accepted in zip(predictions, references, strict=True)]
    sums = np.array(found, dtype=np.float64).reshape(-1, 6)
    f1 = precision_recall_f1(*(sums[:, number] for number in (2, 3, 4)))[2]
    return Counted(
        sums=sums,
        rows=[
            {"json_valid": row[0], **({"json_field_f1": float(value)} if row[5] else {})}
            for row, value in zip(found, f1, strict=True)
        ],
    )


def combine(sums: Sums) -> Mapping[str, NDArray[np.float64]]:
    """Return the share of valid answers and the F1 of all fields."""
    f1 = precision_recall_f1(sums[..., 2], sums[..., 3], sums[..., 4])[2]
    return {
        "json_valid": ratio(sums[..., 0], sums[..., 1]),
        "json_field_f1": np.where(sums[..., 5] > 0, f1, np.nan),
    }


def _count_row(generated: str, accepted: Sequence[str]) -> tuple[float, ...]:
    expected = [read for read in map(read_json, accepted) if read.values]
    given = read_json(generated)
    allowed = _FENCES.union(*(read.around for read in expected))
    valid = bool(given.values) and given.around <= allowed
    if not expected:
        return float(valid), 1.0, 0.0, 0.0, 0.0, 0.0
    fields = _fields_of(given.values) if valid else Counter[Hashable]()
    counts = [(float((fields & wanted).total()), wanted.total()) for wanted in map(_fields_of_read, expected)]
    right, wanted = max(counts, key=lambda one: one[0] / max(fields.total() + one[1], 1))
    return float(valid), 1.0, right, float(fields.total()), float(wanted), 1.0


def _fields_of_read(read: Read) -> Counter[Hashable]:
    return _fields_of(read.values)


def _fields_of(values: Sequence[Any]) -> Counter[Hashable]:
    return Counter(leaf for value in values for leaf in _leaves(value, ()))


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[Hashable]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list) and value:
        for inner in value:
            yield from _leaves(inner, path)
    elif isinstance(value, Mapping | list):
        yield path, type(value).__name__, None  # an empty object or list is a field of its own
    elif isinstance(value, str):
        yield path, "text", value.strip()
    else:
        # True is 1 to Python, and not to JSON.
        yield path, type(value).__name__ if isinstance(value, bool) or value is None else "number", value
