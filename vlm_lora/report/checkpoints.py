"""The checkpoints in an output folder: step, date, losses, scores, which is best, and whether each is whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from vlm_lora.config.scoring import is_score
from vlm_lora.errors import ConfigError
from vlm_lora.model.manifest import State, examine
from vlm_lora.training.checkpoints.contents import STATE_FILE, missing_parts, step_of
from vlm_lora.training.checkpoints.run_record import RECORD, read_record

SETTINGS = ("run.json", "run_settings.json")
"""Records of a run in its checkpoints, newest way first; the modules that write them import torch."""

_NAME = re.compile(r"checkpoint-(\d+)")


def describe_checkpoints(folder: Path) -> str:
    """Return a table of the `checkpoint-N` folders in the order of N, and a line that says which is best.

    Its columns are name, step, epoch, date, `loss` (the last one logged since the checkpoint before), `eval_loss` and
    every score that was measured at that step, and `complete`, or what is missing.

    Raises:
        ConfigError: there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"--list_checkpoints {folder}: no such folder.")
    found = _checkpoints(folder)
    if not found:
        return f"{folder} holds no checkpoint-N folder."
    states, measured = _histories(folder, found)
    names = dict.fromkeys(name for figures in measured.values() for name in figures)
    scores = [name for name in names if name == "eval_perplexity" or is_score(name)]
    best, reason = _best(found, states, measured)
    columns = [name for name in ("loss", "eval_loss") if any(name in figures for figures in measured.values())]
    head = ["checkpoint", "step", "epoch", "saved", *columns, *scores, "parts"]
    record = read_record(folder)
    lines = [head]
    for number, path in found:
        figures = measured[number]
        listed = record.checkpoints is None or record.lists(path.name)
        lines.append(
            [
                f"{path.name}{' *' if path.name == best else ''}",
                str(number),
                _number(figures.get("epoch")),
                datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M:%S"),
                *(_number(figures.get(name)) for name in (*columns, *scores)),
                _parts(number, path) + ("" if listed else f"; on no list in {RECORD}"),
            ]
        )
    return "\n".join([*aligned(lines), *([f"* {reason}"] if best else [])])


def best_of(folder: Path) -> str | None:
    """Return the name of the best checkpoint in a folder, as `describe_checkpoints` marks it."""
    found = _checkpoints(folder)
    if not found:
        return None
    return _best(found, *_histories(folder, found))[0]


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    return sorted(
        (int(match[1]), child)
        for child in folder.iterdir()
        if child.is_dir() and (match := _NAME.fullmatch(child.name))
    )


def _histories(
    folder: Path, found: Sequence[tuple[int, Path]]
) -> tuple[list[dict[str, Any]], dict[int, dict[str, float]]]:
    """Return the trainer's states of checkpoints and run, and what was logged at each checkpoint's step."""
    states = [_read(path / STATE_FILE) for path in (*(child for _, child in found), folder)]
    logs = [log for state in states if isinstance(log := state.get("log_history"), list)]
    logged = [entry for log in logs for entry in log if isinstance(entry, dict) and _is_number(entry.get("step"))]
    numbers = [number for number, _ in found]
    return states, {
        number: _measured(logged, number, before) for before, number in zip([-1, *numbers], numbers, strict=False)
    }


def _measured(logged: Iterable[Mapping[str, Any]], step: int, before: int) -> dict[str, float]:
    """Return what was logged at a step, and the last training loss behind the checkpoint before it."""
    found: dict[str, float] = {}
    last = before + 1
    for entry in logged:
        at = entry["step"]
        if "loss" in entry and last <= at <= step:
            last, found["loss"] = at, entry["loss"]
        if at == step:
            numbers = {name: value for name, value in entry.items() if isinstance(value, int | float)}
            found |= {name: value for name, value in numbers.items() if name == "epoch" or name.startswith("eval_")}
    return found


def _best(
    found: Sequence[tuple[int, Path]], states: Sequence[Mapping[str, Any]], measured: Mapping[int, Mapping[str, float]]
) -> tuple[str | None, str]:
    """Return the name of the best checkpoint that is there, and by what it is the best."""
    newest = max(states, key=_step)
    named = newest.get("best_model_checkpoint")
    names = {path.name for _, path in found}
    if isinstance(named, str):
        name = Path(named).name
        records = (_read(found[-1][1] / name) for name in SETTINGS)
        settings: Mapping[str, Any] = next(
            (known for record in records if isinstance(known := record.get("settings"), dict)), {}
        )
        metric = str(settings.get("metric_for_best_model") or "loss")
        metric = metric if metric.startswith("eval_") else f"eval_{metric}"
        value = _number(newest.get("best_metric"))
        return (name, f"best by {metric}: {value}") if name in names else (None, "")
    losses = {number: figures["eval_loss"] for number, figures in measured.items() if "eval_loss" in figures}
    if not losses:
        return None, ""
    number = min(losses, key=lambda each: losses[each])
    return dict(found)[number].name, "lowest eval_loss; no --metric_for_best_model was set"


def _step(state: Mapping[str, Any]) -> float:
    step = state.get("global_step")
    return float(step) if isinstance(step, int | float) else 0.0


def _parts(number: int, path: Path) -> str:
    step = step_of(path)
    says = "" if step in (number, None) else f"; its state is of step {step}"
    verdict = examine(path, contents=False)
    if verdict.state is State.DAMAGED:
        return f"damaged: {verdict}{says}"
    if verdict.state is State.UNFINISHED:
        return f"incomplete: saving was interrupted, or is under way{says}"
    faults = missing_parts(path)
    return ("complete" if not faults else f"incomplete: {', '.join(faults)}") + says


def _read(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; nothing where there is none, or one that is cut off, which `parts` says."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-"


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of columns as wide as their widest entry, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
