"""Which figures of a run's log belong into which chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_lora.config.scoring import is_score
from vlm_lora.report.pages.rendering import heading
from vlm_lora.report.run_page.folder import is_figure

MOST_POINTS = 1500
"""Points of one line; of more, each stretch is drawn by its least and its largest."""

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Line:
    """One figure over the steps."""

    name: str
    """As the log has it."""
    label: str
    steps: tuple[float, ...]
    values: tuple[float, ...]
    """As the log has them."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Lines that share their axes."""

    key: str
    title: str
    lines: tuple[Line, ...]
    unit: float = 1.0
    """What values are divided by where they are drawn."""


def charts_of(log: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Return the charts of a log, those alone that have something to show."""
    lines = {name: _line(name, log) for name in _names(log)}
    scores = [name for name in lines if is_score(name)]
    groups = (
        ("loss", "loss", ["loss", "eval_loss"], 1.0),
        ("rate", "learning rate", [name for name in lines if name.endswith("learning_rate")], 1.0),
        ("norm", "gradient norm", ["grad_norm"], 1.0),
        *((f"score-{number}", heading(name), [name], 1.0) for number, name in enumerate(scores)),
        *((name, _title(name), [name], 1.0) for name in lines if name.endswith("_per_second") and "eval_" not in name),
        ("memory", "memory in GiB", [name for name in lines if name.endswith("_bytes")], GIB),
        ("shares", "waiting and padding, %", ["data_wait", "padding"], 0.01),
    )
    found = []
    for key, title, names, unit in groups:
        members = tuple(lines[name] for name in names if name in lines)
        if members:
            found.append(Chart(key=key, title=title, lines=members, unit=unit))
    return found


def thinned(line: Line) -> tuple[list[float], list[float]]:
    """Return a line's points, of many the least and the largest of each stretch, in order."""
    count = len(line.steps)
    if count <= MOST_POINTS:
        return list(line.steps), list(line.values)
    kept: set[int] = {0, count - 1}
    stretches = MOST_POINTS // 2
    for number in range(stretches):
        places = range(number * count // stretches, (number + 1) * count // stretches)
        kept |= {min(places, key=line.values.__getitem__), max(places, key=line.values.__getitem__)}
    order = sorted(kept)
    return [line.steps[at] for at in order], [line.values[at] for at in order]


def _title(name: str) -> str:
    return heading(name)


def _names(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of all figures, in the order in which they appear; the sums at the end are no curve."""
    names = (name for entry in log if "train_runtime" not in entry for name in entry)
    return [name for name in dict.fromkeys(names) if name not in ("step", "epoch", "total_flos")]


_LABELS = {
    "loss": "training",
    "eval_loss": "validation",
    "data_wait": "waiting for data",
    "padding": "padding",
    "memory_peak_bytes": "peak",
    "memory_allocated_bytes": "allocated",
}


def _line(name: str, log: Sequence[Mapping[str, Any]]) -> Line:
    points: dict[float, float] = {}
    for entry in log:
        # A run that was gone on from may have logged a step twice: the later one counts.
        if is_figure(entry.get(name)) and is_figure(entry.get("step")) and "train_runtime" not in entry:
            points[float(entry["step"])] = float(entry[name])
    ordered = sorted(points.items())
    label = _LABELS.get(name, heading(name))
    return Line(name=name, label=label, steps=tuple(step for step, _ in ordered), values=tuple(v for _, v in ordered))
