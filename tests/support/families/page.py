"""The second half of docs/families.md: every type that was tried, from docs/families.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[3] / "docs"
PAGE = DOCS / "families.md"
RESULTS = DOCS / "families.json"
BEGIN = "<!-- every mapped type: begin -->"
_HEAD = "| Model type | Result | Chat template | LoRA adapts by default |\n|---|---|---|---|\n"
_DEEPER = ("checkpointing", "two ranks", "simulated hpu", "4 bits", "plan")


def read_results() -> dict[str, dict[str, Any]]:
    """Return the rows of `make families` by type."""
    rows: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return rows


def result_of(row: Mapping[str, Any]) -> str:
    """Say in a few words what came out for a type."""
    if "refused" in row:
        return f"refused: it {row['refused']}"
    if "untried" in row:
        return "not tried yet"
    if "failed" in row:
        return f"does not work: {row['failed']}"
    return "trained, reloaded" + (" (by the tests)" if "tested" in row else "")


def works(row: Mapping[str, Any]) -> bool:
    """Tell whether a type went through the whole trial."""
    return not {"refused", "failed", "untried"} & row.keys()


def write_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the part of the page that stands behind `BEGIN`."""
    refused = sum("refused" in row for row in rows.values())
    working = sum(works(row) for row in rows.values())
    untried = sum("untried" in row for row in rows.values())
    failed = len(rows) - refused - working - untried
    lines = [
        f"| `{name}` | {result_of(row)} | {row.get('template', '')} | {', '.join(row.get('adapted', ()))} |"
        for name, row in sorted(rows.items())
    ]
    counts = f"Of {len(rows)} types {working} work, {refused} are refused by name, {failed} do not work and {untried} "
    counts += "were not tried yet.\n\n"
    return counts + _HEAD + "\n".join(lines) + "\n\n" + _write_deeper(rows)


def _write_deeper(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of the types that were tried deeper."""
    deeper = {name: row["deep"] for name, row in sorted(rows.items()) if "deep" in row}
    lines = [
        f"| `{name}` | {' | '.join(found.get(check, '') for check in _DEEPER)} |" for name, found in deeper.items()
    ]
    head = f"| Tried deeper | {' | '.join(_DEEPER)} |\n|{'---|' * (len(_DEEPER) + 1)}\n"
    return f"Tried deeper: {len(deeper)} types.\n\n" + head + "\n".join(lines) + "\n"
