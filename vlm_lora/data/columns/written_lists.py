"""Lists of texts written out as one text, as tables do that have no lists: by JSON, by Python or by numpy."""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

_TEXT = r"""[uU]?(?:'(?:[^'\\\r\n]|\\.)*'|"(?:[^"\\\r\n]|\\.)*")"""
_SPACE = r"[ \t\r\n]"
_LISTS = tuple(
    re.compile(rf"\[{_SPACE}*{_TEXT}(?:{between}{_TEXT})*{_SPACE}*{end}\]")
    for between, end in ((rf"{_SPACE}*,{_SPACE}*", rf",?{_SPACE}*"), (rf"{_SPACE}+", ""))
)
"""Texts parted by commas, as Python writes them, or all by spaces, as numpy does. Never both: Python reads texts
without a comma between as one."""


def written_list(cell: Any) -> list[str] | None:
    """Return the list of texts that a text writes out (`["14", "15"]`, `['14', '15']`, `['14' '15']`).

    None where it writes none. JSON is tried first: Python reads its escaped slashes and halves of characters otherwise.
    """
    if not isinstance(cell, str) or not cell.lstrip().startswith("["):
        return None
    text = cell.strip()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _as_code(text)
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else None


def _as_code(text: str) -> list[str] | None:
    if not any(form.fullmatch(text) for form in _LISTS):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unknown escapes such as \d
            return [ast.literal_eval(item) for item in re.findall(_TEXT, text)]
    except (ValueError, SyntaxError):
        return None
