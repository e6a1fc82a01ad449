"""The runs below a folder: state, step, last loss and score, best checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_lora.config.scoring import is_score
from vlm_lora.errors import ConfigError
from vlm_lora.report.checkpoints import aligned, best_of
from vlm_lora.training.run_state import RUN_STATE, RunState


def find_runs(folder: Path) -> list[dict[str, Any]]:
    """Return what is known of each run below a folder, in the order of their paths; the folder may be one itself.

    Raises:
        ConfigError: there is no such folder, or no run of `train` below it.
    """
    if not folder.is_dir():
        raise ConfigError(f"vlm-lora runs {folder}: no such folder.")
    found = [_described(path, folder) for path in sorted(folder.rglob(RUN_STATE)) if path.is_file()]
    if not found:
        raise ConfigError(
            f"vlm-lora runs {folder}: no run below it: no {RUN_STATE}, which a training keeps in its --output_dir."
        )
    return found


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of runs, and below it why those ended that neither run nor are done."""
    lines = [["run", "state", "step", "loss", "score", "checkpoint", "best", "process", "last heard"]]
    for run in runs:
        lines.append(
            [
                run["run"],
                run["state"],
                f"{_text(run['step'])} of {_text(run['steps'])}",
                _text(run["loss"]),
                "-" if run["score"] is None else f"{run['metric']} {_text(run['score'])}",
                *(_text(run[name]) for name in ("checkpoint", "best")),
                f"{run['pid']} on {run['host']}",
                _text(run["updated"]),
            ]
        )
    reasons = [f"{run['run']}: {run['reason'].splitlines()[0]}" for run in runs if run["reason"]]
    return "\n".join([*aligned(lines), *reasons])


def _described(path: Path, folder: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {}
    run = RunState.of(content if isinstance(content, dict) else {})
    measured = run.content.get("evaluation") or {}
    scores = [name for name in measured if is_score(name)]
    metric = next((name for name in (*scores, "eval_loss") if name in measured), None)
    return {
        "run": str(path.parent.relative_to(folder)),
        "state": run.state,
        **{name: run.content.get(name) for name in ("step", "steps", "loss", "checkpoint", "reason")},
        "metric": None if metric is None else metric.removeprefix("eval_"),
        "score": None if metric is None else measured[metric],
        "best": best_of(path.parent),
        **{name: run.content.get(name) for name in ("host", "pid", "started", "updated")},
    }


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
