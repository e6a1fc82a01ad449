"""Stretches of documentation that a test makes: compared with the page, or written into it by `make docs`."""

from __future__ import annotations

import os
from pathlib import Path


def check_made(page: Path, begin: str, end: str, made: str) -> None:
    """Assert that `page` holds `made` between its two marks; with UPDATE_DOCS=1 put it there instead."""
    head, rest = page.read_text(encoding="utf-8").split(begin)
    current, tail = rest.split(end)
    if os.environ.get("UPDATE_DOCS") == "1":
        page.write_text(f"{head}{begin}\n{made}\n{end}{tail}", encoding="utf-8")
        return
    assert current.strip() == made.strip()
