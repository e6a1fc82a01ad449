"""Names of many files in one word: `{0000..0007}`, `{a,b}`, and lists separated by commas.

Nothing is ever run: `pipe:` commands, which WebDataset knows, are refused.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

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
