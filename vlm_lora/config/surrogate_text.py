r"""Text for files and terminals that may hold names of files, which on Linux are any bytes.

Python reads the bytes of a name that are not UTF-8 as lone surrogates (`donn\udce9es.jsonl`), and these cannot be
encoded as UTF-8. They are written as that escape: JSON reads it back as the very name.
"""

from __future__ import annotations

import io
import os
import sys

ESCAPED = "backslashreplace"
"""The way of `codecs` in which such names are written."""


def encode(text: str) -> bytes:
    r"""Return text as UTF-8, each lone surrogate as `\udce9`."""
    return text.encode("utf-8", ESCAPED)


def let_stdout_escape() -> None:
    """Make what is printed take every name too, as standard error does already."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=ESCAPED)


def flush_stdout() -> None:
    """Write what stdout still holds; there is none where the shell closed it."""
    if sys.stdout is not None:
        sys.stdout.flush()


def drop_stdout() -> None:
    """Send what stdout still holds nowhere, where it cannot be written; Python would fail on it at its exit."""
    try:
        flush_stdout()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
