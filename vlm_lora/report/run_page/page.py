"""`report.html`: one run on one page, from the files that lie in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_lora.config.scoring import is_score, less_is_better
from vlm_lora.config.whole_files import write_whole
from vlm_lora.errors import ConfigError
from vlm_lora.report.pages.rendering import as_text, render
from vlm_lora.report.run_page.answers import MOST, Album, described, worst_first
from vlm_lora.report.run_page.curves import charts_of
from vlm_lora.report.run_page.drawing import draw
from vlm_lora.report.run_page.folder import RunFolder, is_figure, read_run
from vlm_lora.report.run_page.settings import changed_settings, machine
from vlm_lora.report.run_page.stored_images import StoredImages

PAGE = "report.html"
MARK = b'<meta name="generator" content="vlm-lora'
"""Near the head of every page of ours."""
MOST_BYTES = 20_000_000
"""Of a page."""
ROOM = 14_000_000
"""Bytes of all images of a page together; the rest is for curves and text."""
MOST_ENTRIES = 200
"""Evaluations and bad rows that are listed; the files hold all."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a run ended, where whoever makes its page knows it."""

    good: bool
    said: str


def write_run_page(
    folder: Path,
    output: Path,
    *,
    images: bool = True,
    ending: Ending | None = None,
    more: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a run's page.

    Args:
        folder: the run's `--output_dir`.
        output: the page.
        images: whether predictions are shown with their images.
        ending: how the run ended; by default as far as its files say.
        more: what was logged, where the run knows of more than it has written.

    Raises:
        ConfigError: the folder holds no run, or the page cannot be written.
    """
    run = read_run(folder, more)
    text = render_run(run, images=images, ending=ending)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, text)
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {error.strerror}. Name another file or folder.") from error


def render_run(run: RunFolder, *, images: bool = True, ending: Ending | None = None) -> str:
    """Return a run's page as HTML text of at most `MOST_BYTES`, with as many images as fit."""
    album = Album(StoredImages(run.settings, run.directory) if images else None, ROOM)
    ranked = worst_first(run.predictions)
    text = render(
        "run_page/run.html.jinja",
        title=run.name,
        run=run,
        ending=ending or ending_of(run),
        tiles=tiles(run),
        charts=[(chart, draw(chart)) for chart in charts_of(run.log)],
        scores=score_rows(run),
        groups=groups(run),
        evaluations=_evaluations(run),
        settings=changed_settings(run.settings),
        all_settings=[(name, as_text(value)) for name, value in run.settings.items()],
        answers=[described(row, album) for row in ranked[:MOST]],
        base=str(run.directory),
        results=[(name, value) for name, value in sorted(run.results.items()) if is_figure(value)],
        machine=machine(run),
        images=images,
        most=MOST_ENTRIES,
    )
    return text if len(text.encode("utf-8", "replace")) <= MOST_BYTES or not images else _without_images(run, ending)


def refuse_other_files(path: Path) -> None:
    """Refuse to write a page over something else.

    Raises:
        ConfigError: it is a folder, or a file that is no page of ours.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file, such as --output {path / PAGE}.")
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as opened:
            if MARK not in opened.read(1024):
                raise ConfigError(
                    f"{path} is no page of vlm-lora; it would be replaced. Type --output with another file."
                )


def _without_images(run: RunFolder, ending: Ending | None) -> str:
    return render_run(run, images=False, ending=ending)


def ending_of(run: RunFolder) -> Ending:
    """Return how a run ended, as far as its files say."""
    done, planned = run.state.get("global_step"), run.state.get("max_steps")
    if not run.state:
        good = bool(run.results)
        return Ending(good=good, said="evaluated" if good else "nothing was trained yet")
    if "train_runtime" in run.results:
        return Ending(good=True, said=f"finished: {done} of {planned} steps")
    return Ending(good=False, said=f"not finished: {done} of {planned} steps are saved")


def tiles(run: RunFolder) -> list[tuple[str, str, Any]]:
    """Return the figures at the head of the page: label, name in the files, value."""
    losses = [entry["loss"] for entry in run.log if is_figure(entry.get("loss"))]
    wanted: list[tuple[str, str, Any]] = [("steps", "global_step", run.state.get("global_step"))]
    if losses:
        wanted.append(("last training loss", "loss", losses[-1]))
    labels = {
        "eval_loss": "validation loss",
        "eval_perplexity": "perplexity",
        **{name: name.removeprefix("eval_").replace("_", " ") for name in list(run.scores)[:4]},
        "train_runtime": "training time",
        "train_samples_per_second": "rows a second",
        "train_memory_peak_bytes": "most memory",
        "train_data_wait_seconds": "waited for data",
        "train_padding_share": "padding",
        "train_skipped_steps": "steps skipped, not finite",
        "train_overflow_steps": "steps skipped, fp16 overflow",
    }
    wanted += [(label, name, run.results.get(name)) for name, label in labels.items()]
    if run.best:
        wanted.append(("best checkpoint", "best_model_checkpoint", run.best))
    return [tile for tile in wanted if tile[2] is not None]


def score_rows(run: RunFolder) -> list[dict[str, Any]]:
    """Return the scores of the final evaluation, each with its interval and which direction is better."""
    found = []
    for name, value in run.scores.items():
        low_high = run.results.get(f"{name}_interval")
        if not isinstance(low_high, list) or len(low_high) != 2:
            low_high = [run.results.get(f"{name}_{side}_95") for side in ("low", "high")]
        known = all(is_figure(one) for one in low_high)
        found.append(
            {
                "name": name,
                "value": value,
                "interval": low_high if known else None,
                "better": "lower" if less_is_better(name) else "higher",
            }
        )
    return found


def groups(run: RunFolder) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Return the scores per task and per source, where the results hold any (`eval_by_task`, `eval_by_source`)."""
    return {
        name.removeprefix("eval_by_"): {
            str(one): figures for one, figures in found.items() if isinstance(figures, dict)
        }
        for name, found in run.results.items()
        if name.startswith("eval_by_") and isinstance(found, dict)
    }


def _evaluations(run: RunFolder) -> dict[str, Any]:
    """Return the evaluations as a table: names of the figures, and the entries."""
    entries = run.evaluations
    names = list(dict.fromkeys(name for entry in entries for name in entry if _is_shown(name)))
    return {
        "names": names,
        "entries": entries[-MOST_ENTRIES:],
        "best": run.state.get("best_global_step"),
        "tops": {name: _top(name, entries) for name in names},
        "left": len(entries) - MOST_ENTRIES,
    }


def _top(name: str, entries: Sequence[Mapping[str, Any]]) -> Any:
    """Return the best value of a figure, where there are several and the name says which is better."""
    values = [entry[name] for entry in entries if is_figure(entry.get(name))]
    if len(set(values)) < 2 or name == "eval_answers":
        return None
    return min(values) if less_is_better(name) else max(values)


def _is_shown(name: str) -> bool:
    return name in ("eval_loss", "eval_perplexity", "eval_answers") or is_score(name)
