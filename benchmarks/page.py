"""docs/benchmarks.md from the JSON files of results: `python -m benchmarks.page`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from benchmarks import ROOT
from benchmarks.figures import Figure, shown

PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "benchmarks" / "results"
PARTS = {"cpu": RESULTS / "cpu.json", "gpu": RESULTS / "gpu.json"}
"""By name of the part of the page, which stands between two comments."""


def render(results: Mapping[str, Any]) -> str:
    """Return a file of results as Markdown: where it was measured, a table for each stage, what is missing."""
    machine, versions = results["machine"], results["versions"]
    where = ", ".join(
        [
            str(machine["processor"]),
            *([f"{machine['cores']} cores"] if "cores" in machine else []),
            *(f"{name} {number}" for name, number in versions.items()),
        ]
    )
    dates = sorted({stage["date"] for stage in results["stages"].values()})
    lines = [f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))} on {where}.", ""]
    for name, stage in results["stages"].items():
        lines += [f"**{name.replace('_', ' ')}**", ""]
        if stage["figures"]:
            lines += ["| Figure | Measured | Quartiles | Goal | |", "|---|---|---|---|---|"]
            lines += [_row(Figure(**values)) for values in stage["figures"]]
            lines.append("")
        lines += [f"- Not measured: {missing}" for missing in stage["missing"]]
        lines += [""] if stage["missing"] else []
    return "\n".join(lines).rstrip()


def _row(figure: Figure) -> str:
    unit = "" if figure.unit == "ratio" else f" {figure.unit}"
    spread = "" if figure.low is None or figure.high is None else f"{shown(figure.low)} to {shown(figure.high)}"
    goal = "" if figure.goal is None else f"{figure.goal:g}"
    verdict = {None: "", True: "met", False: "not met"}[figure.met]
    name = f"{figure.name} ({figure.note})" if figure.note else figure.name
    return f"| {name} | {shown(figure.value)}{unit} | {spread} | {goal} | {verdict} |"


def fill(page: str, part: str, text: str) -> str:
    """Return the page with a part replaced.

    Raises:
        ValueError: the page has no such part.
    """
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no {begin} ... {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def main() -> None:
    """Write each part that there are results of."""
    page = PAGE.read_text(encoding="utf-8")
    for part, path in PARTS.items():
        if path.is_file():
            page = fill(page, part, render(json.loads(path.read_text(encoding="utf-8"))))
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
