"""What a benchmark finds: a figure with its spread beside its goal, and the JSON file that stages write theirs into."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl", "flash-attn", "bitsandbytes")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table. A figure is met where it is at most its goal."""

    name: str
    value: float
    """The median."""
    low: float | None = None
    """The lower quartile; None where there was one measurement."""
    high: float | None = None
    goal: float | None = None
    """None where the figure is said without one."""
    unit: str = "ratio"
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        return None if self.goal is None else self.value <= self.goal

    def line(self) -> str:
        """Return the figure as one line of text."""
        spread = "" if self.low is None or self.high is None else f" [{shown(self.low)}, {shown(self.high)}]"
        unit = "" if self.unit == "ratio" else f" {self.unit}"
        verdict = {None: "", True: f"  goal {self.goal}: met", False: f"  goal {self.goal}: NOT met"}[self.met]
        return f"{self.name}: {shown(self.value)}{spread}{unit}{verdict}{'  (' + self.note + ')' if self.note else ''}"


def shown(value: float) -> str:
    """Return a number as tables show it: three digits that count, thousands whole."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(name: str, values: Sequence[float], *, goal: float | None = None, note: str = "") -> Figure:
    """Return the median of ratios with its quartiles.

    Args:
        name: of the figure.
        values: one a round.
        goal: what it should be at most.
        note: said behind it.
    """
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return Figure(name=name, value=middle, low=low, high=high, goal=goal, note=note)


class Results:
    """The JSON file of a benchmark: each stage is written as soon as it is done, so that a run can be gone on with.

    Args:
        path: of the file; what it has of other stages stays.
        about: of the run, for example its rounds.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self._path = path
        self.content: dict[str, Any] = {"stages": {}}
        if path.is_file():
            self.content = json.loads(path.read_text(encoding="utf-8"))
        self.content |= {
            "date": datetime.now(timezone.utc).date().isoformat(),
            "versions": versions(),
            "machine": machine(),
            **about,
        }

    def add(self, stage: str, figures: Sequence[Figure], missing: Sequence[str], seconds: float) -> None:
        """Write what a stage found, and what of it could not be measured, with the reason."""
        self.content["stages"][stage] = {
            "figures": [asdict(figure) for figure in figures],
            "missing": list(missing),
            "seconds": round(seconds, 1),
            "date": self.content["date"],
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")

    def figures(self, stage: str) -> list[Figure]:
        """Return a stage's figures as they were written."""
        return [Figure(**values) for values in self.content["stages"].get(stage, {}).get("figures", [])]


def versions() -> dict[str, str]:
    """Return the installed versions of what the figures depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return the processor and its cores; no names of hosts and no paths."""
    model = ""
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {"processor": model or platform.machine(), "cores": os.cpu_count() or 1}
