"""One way to make a page of ours: templates over a common base, everything escaped, nothing from outside.

A page is one HTML file. Its policy (a `Content-Security-Policy` tag in the base) lets the browser load nothing but
`data:` images and the style sheet inside it, and run no script, whatever the data hold.
"""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vlm_lora.config.version import __version__
from vlm_lora.data.wording import counted
from vlm_lora.report.pages.histograms import bars
from vlm_lora.report.preview import visible

ROOM = Path(__file__).parents[1]

_SECONDS = (("h", 3600), ("min", 60), ("s", 1))
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def render(template: str, **values: Any) -> str:
    """Return a page as HTML text.

    Args:
        template: a file below `vlm_lora/report`, such as `run_page/run.html.jinja`.
        values: what the template shows; every text is escaped, and signs that would not be seen are written out.
    """
    return _environment().get_template(template).render(version=__version__, **values)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(ROOM),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    made.filters |= {
        "number": number,
        "words": in_words,
        "address": address,
        "named": heading,
        "bars": bars,
        "counted": counted,
    }
    return made


def number(value: Any) -> str:
    """Return a figure as people read it: four significant digits, all digits of a count, a dash where there is none.

    >>> number(0.123456), number(41), number(2.5e-05), number(None)
    ('0.1235', '41', '2.5e-05', '–')
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value)}"
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def in_words(value: Any, name: str) -> str:
    """Return a figure with the unit that its name says: seconds, bytes, shares of a hundred.

    >>> in_words(4215.3, "train_runtime"), in_words(2**31, "train_memory_peak_bytes"), in_words(0.5, "data_wait")
    ('1 h 10 min', '2.00 GiB', '50.0 %')
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return number(value)
    if name.endswith(("_runtime", "_seconds")):
        return seconds(value)
    if name.endswith("_bytes"):
        return size(value)
    if name.endswith(("data_wait", "_share", "padding")):
        return f"{value:.1%}".replace("%", " %")
    return number(value)


def seconds(count: float) -> str:
    """Return a time by its two largest units; below a minute with one digit behind the point."""
    if count < 60:
        return f"{count:.1f} s"
    parts: list[str] = []
    rest = round(count)
    for unit, length in _SECONDS:
        whole, rest = divmod(rest, length)
        if whole or parts:
            parts.append(f"{whole} {unit}")
    return " ".join(parts[:2])


def size(count: float) -> str:
    """Return bytes by the largest unit of which there is one."""
    step = 0
    while count >= 1024 and step < len(_UNITS) - 1:
        count, step = count / 1024, step + 1
    return f"{count:.2f} {_UNITS[step]}" if step else f"{count:.0f} {_UNITS[0]}"


def address(file: str, base: str = "") -> str:
    """Return the `file://` address of a file that is there, else nothing: a Hub data set's rows lie in none."""
    try:
        path = Path(base, file).absolute()
        return path.as_uri() if path.is_file() else ""
    except (OSError, ValueError):
        return ""


_CALLED = {"loss": "training loss", "eval_loss": "validation loss", "train_runtime": "training time"}


def heading(name: str) -> str:
    """Return a figure's name as a title; its unit stands by the value.

    >>> heading("eval_exact_match"), heading("train_samples_per_second"), heading("train_memory_peak_bytes")
    ('exact match', 'train samples a second', 'train memory peak')
    """
    words = re.sub(r"_(bytes|seconds)$", "", re.sub(r"_per_second$", "_a_second", name.removeprefix("eval_")))
    return _CALLED.get(name, words.replace("_", " "))


def as_text(value: Any) -> str:
    """Return a setting's value on one line, a number of any type alike.

    >>> as_text(64.0), as_text(True), as_text(None), as_text(["a", 1])
    ('64', 'true', 'none', '["a", 1]')
    """
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return json.dumps(value, ensure_ascii=False, default=str)
