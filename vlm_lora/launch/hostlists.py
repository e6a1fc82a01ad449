"""Slurm's short forms: `node[001-003,7]` for machines, `8(x2),4` for counts."""

from __future__ import annotations

import itertools
import re

from vlm_lora.errors import ConfigError

_PIECES = re.compile(r"(?:[^,\[\]]|\[[^\[\]]*\])+")
_PARTS = re.compile(r"\[([^\[\]]*)\]|([^\[\]]+)")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_COUNT = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def expand_hosts(text: str) -> list[str]:
    """Return the machines of a Slurm host list, in its order.

    Raises:
        ConfigError: the text is no host list.
    """
    pieces = _PIECES.findall(text)
    if not pieces or ",".join(pieces) != text:
        raise ConfigError(_wrong(text))
    hosts: list[str] = []
    for piece in pieces:
        parts = [_numbers(match[1], text) if match[2] is None else [match[2]] for match in _PARTS.finditer(piece)]
        hosts += ["".join(names) for names in itertools.product(*parts)]
    return hosts


def expand_counts(text: str) -> list[int]:
    """Return one count for each machine of `8(x2),4`."""
    counts: list[int] = []
    for piece in filter(None, text.split(",")):
        match = _COUNT.fullmatch(piece)
        if match is None:
            raise ConfigError(f"SLURM_STEP_TASKS_PER_NODE={text}: is not of Slurm's form, such as 8(x2),4.")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _numbers(inside: str, text: str) -> list[str]:
    """Expand `001-003,7`; the leading zeros of the first number are kept."""
    found: list[str] = []
    for piece in inside.split(","):
        match = _RANGE.fullmatch(piece)
        if match is None:
            raise ConfigError(_wrong(text))
        low, high = match[1], match[2] or match[1]
        if int(high) < int(low) or int(high) - int(low) > 1_000_000:
            raise ConfigError(_wrong(text))
        found += [str(number).zfill(len(low)) for number in range(int(low), int(high) + 1)]
    return found


def _wrong(text: str) -> str:
    return f"{text!r} is not a Slurm host list, such as node[001-003,7]; set MASTER_ADDR to the first machine's name."
