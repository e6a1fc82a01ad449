"""What differs between runs, as figures that terminal and page show alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_lora.config.fields import own_fields
from vlm_lora.config.scoring import is_score, less_is_better
from vlm_lora.errors import ConfigError
from vlm_lora.report.comparison.paired import Paired, compare
from vlm_lora.report.pages.rendering import as_text
from vlm_lora.report.run_page.curves import Chart, Line, charts_of
from vlm_lora.report.run_page.folder import Prediction, RunFolder, is_figure, read_run

PLACES = ("output_dir", "logging_dir", "run_name", "overwrite_output_dir", "resume_from_checkpoint")
"""Settings that differ between any two runs and say nothing of what they do."""

FIGURES = (
    "train_loss",
    "eval_loss",
    "eval_perplexity",
    "train_runtime",
    "train_samples_per_second",
    "train_memory_peak_bytes",
    "train_data_wait_seconds",
    "train_padding_share",
)
"""Figures of the results that are shown in addition to scores."""


@dataclass(frozen=True, kw_only=True)
class Changed:
    """A row that one run answers better than the other."""

    before: Prediction
    after: Prediction

    @property
    def better(self) -> bool:
        """Whether the later run is the better one."""
        return self.after.badness < self.before.badness

    @property
    def size(self) -> float:
        """How much better or worse, from 0 to 1."""
        return abs(self.after.badness - self.before.badness)


@dataclass(frozen=True, kw_only=True)
class Against:
    """One run next to the first."""

    run: RunFolder
    name: str
    pairs: int
    """Rows that both answered."""
    only_first: int
    """Rows that the first alone answered."""
    only_second: int
    expected_differs: int = 0
    """Rows of both for which different answers count as right: the data are not the same."""
    scores: Mapping[str, Paired] = field(default_factory=dict)
    changed: Sequence[Changed] = ()
    """The rows that got better or worse, the largest changes first."""
    reworded: int = 0
    """Rows that are answered otherwise, neither better nor worse."""

    @property
    def nothing_paired(self) -> str:
        """Why nothing can be tested, and what helps; for runs without a score in common."""
        if self.only_first and self.only_second:
            return (
                "Both answered rows, but not the same ones (row, file and question), so nothing can be tested. Let "
                "both answer the same data: vlm-lora eval --predict_with_generate, then compare those results."
            )
        return (
            "No row is in the predictions.jsonl of both, so nothing can be tested. vlm-lora eval "
            "--predict_with_generate writes one; compare the folders of the results."
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs next to each other; the first is what the others are compared with."""

    runs: Sequence[RunFolder]
    names: Sequence[str]
    settings: Sequence[tuple[str, Sequence[str | None]]]
    """Settings that are not the same in all, with each run's value; None where a run was not given it."""
    figures: Sequence[tuple[str, Sequence[float | None]]]
    charts: Sequence[tuple[Chart, Sequence[int]]]
    """Each with the number of the run of each of its lines."""
    against: Sequence[Against]


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """Read and compare runs.

    Raises:
        ConfigError: fewer than two are named, one is named twice, or a folder holds no run.
    """
    if len(folders) < 2:
        raise ConfigError("vlm-lora compare: name two runs or more, by their --output_dir: vlm-lora compare RUN RUN")
    places = [folder.resolve() for folder in folders]
    twice = next((folder for folder, place in zip(folders, places, strict=True) if places.count(place) > 1), None)
    if twice is not None:
        raise ConfigError(f"vlm-lora compare: {twice} is named twice. Name each run once.")
    runs = [read_run(folder) for folder in folders]
    names = _names(folders, runs)
    return Comparison(
        runs=runs,
        names=names,
        settings=_settings(runs),
        figures=_figures(runs),
        charts=_charts(runs),
        against=[_against(runs[0], run, name) for run, name in zip(runs[1:], names[1:], strict=True)],
    )


def _names(folders: Sequence[Path], runs: Sequence[RunFolder]) -> list[str]:
    """Return the folders' names, or their paths where a name would stand for two."""
    short = [run.name for run in runs]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _settings(runs: Sequence[RunFolder]) -> list[tuple[str, list[str | None]]]:
    """Return the settings that differ; without every run's record of defaults, those that were given."""
    known = [run.effective if all(each.identity.get("settings") for each in runs) else run.settings for run in runs]
    names = dict.fromkeys(name for one in known for name in one if name not in PLACES)
    rows = [(name, [_value(name, one) for one in known]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _value(name: str, settings: Mapping[str, Any]) -> str | None:
    """Return a setting; ours has its default where a run, perhaps of an earlier version, does not say it."""
    if name in settings:
        return as_text(settings[name])
    own = own_fields().get(name)
    if own is None or not settings:
        return None
    return as_text(list(own.default) if isinstance(own.default, tuple) else own.default)


def _figures(runs: Sequence[RunFolder]) -> list[tuple[str, list[float | None]]]:
    names = dict.fromkeys(name for run in runs for name in run.results if is_score(name) or name in FIGURES)
    ordered = sorted(names, key=lambda name: (not is_score(name), FIGURES.index(name) if name in FIGURES else 0))
    rows = [(name, [_figure(run, name) for run in runs]) for name in ordered]
    return [(name, values) for name, values in rows if any(value is not None for value in values)]


def _figure(run: RunFolder, name: str) -> float | None:
    value = run.results.get(name)
    return float(value) if value is not None and is_figure(value) else None


def _charts(runs: Sequence[RunFolder]) -> list[tuple[Chart, list[int]]]:
    """Return one chart for each figure that is logged, with a line for each run that logged it."""
    lines: dict[str, list[tuple[int, Line]]] = {}
    units: dict[str, tuple[str, float]] = {}
    for number, run in enumerate(runs):
        for chart in charts_of(run.log):
            for line in chart.lines:
                title = chart.title if len(chart.lines) == 1 else _title(chart, line)
                lines.setdefault(line.name, []).append((number, line))
                units.setdefault(line.name, (title, chart.unit))
    return [
        (
            Chart(
                key=name.replace("_", "-"),
                title=units[name][0],
                lines=tuple(line for _, line in found),
                unit=units[name][1],
            ),
            [number for number, _ in found],
        )
        for name, found in lines.items()
    ]


def _title(chart: Chart, line: Line) -> str:
    """Return the title of one line of a chart, which names all of its lines where it has a unit."""
    what, _, unit = chart.title.partition(", ")
    return f"{line.label}, {unit}" if unit else f"{line.label} {what}"


def _against(first: RunFolder, run: RunFolder, name: str) -> Against:
    asked = all(one.prompt is not None for one in (*first.predictions, *run.predictions))
    ours, theirs = (_by_row(each.predictions, asked=asked) for each in (first, run))
    pairs = [(ours[key], theirs[key]) for key in ours if key in theirs]
    changed = [Changed(before=before, after=after) for before, after in pairs if before.badness != after.badness]
    return Against(
        run=run,
        name=name,
        pairs=len(pairs),
        only_first=len(ours) - len(pairs),
        only_second=len(theirs) - len(pairs),
        expected_differs=sum(set(before.accepted) != set(after.accepted) for before, after in pairs),
        scores=_paired(pairs),
        changed=sorted(changed, key=lambda one: -one.size),
        reworded=sum(
            before.badness == after.badness and before.generated != after.generated for before, after in pairs
        ),
    )


def _by_row(predictions: Iterable[Prediction], *, asked: bool) -> dict[tuple[str, str, int], Prediction]:
    """Return predictions by row and, where it is known, question; several of one row and question are counted."""
    found: dict[tuple[str, str, int], Prediction] = {}
    times: dict[tuple[str, str], int] = {}
    for one in predictions:
        place = (one.source, one.prompt or "" if asked else "")
        found[(*place, times.get(place, 0))] = one
        times[place] = times.get(place, 0) + 1
    return found


def _paired(pairs: Sequence[tuple[Prediction, Prediction]]) -> dict[str, Paired]:
    names = dict.fromkeys(name for before, _ in pairs for name in _scores(before))
    found = {}
    for name in names:
        both = [(_scores(before), _scores(after)) for before, after in pairs]
        rows = [(before[name], after[name]) for before, after in both if name in before and name in after]
        if rows:
            found[name] = compare([before for before, _ in rows], [after for _, after in rows])
    return found


def _scores(one: Prediction) -> dict[str, float]:
    """Return a row's scores, exact match among them, and its loss."""
    exact = {} if one.exact is None else {"exact_match": float(one.exact)}
    return {**exact, **one.scores, **({} if one.loss is None else {"eval_loss": one.loss})}


def verdict(name: str, paired: Paired) -> str:
    """Return which run is better by a score, in words, at the usual level of 5 %."""
    if paired.p >= 0.05:
        return "no clear difference"
    return "better" if (paired.difference > 0) != less_is_better(name) else "worse"
