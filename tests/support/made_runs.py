"""A run's folder as a run leaves it, written by hand: every figure in it is known, and no model is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from vlm_lora.preflight.figures import Distribution

STEPS = 40


def made_log(*, slope: float = 1.0) -> list[dict[str, float]]:
    """Return a log: every step, and an evaluation each tenth one."""
    log: list[dict[str, float]] = []
    for step in range(1, STEPS + 1):
        figures = {
            "loss": 3.0 / (1 + slope * step),
            "grad_norm": 1.0 / step,
            "learning_rate": 1e-3 * (1 - step / STEPS),
        }
        log.append({**figures, "data_wait": 0.125, "epoch": step / STEPS, "step": step})
        if step % 10 == 0:
            found = {"eval_loss": 2.0 / (1 + slope * step), "eval_exact_match": step / 80, "eval_runtime": 1.5}
            log.append({**found, "epoch": step / STEPS, "step": step})
    return log


def made_images(folder: Path, count: int) -> list[Path]:
    """Write small images, each of a colour of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.new("RGB", (64, 48), (40 * number % 256, 90, 160)).save(path)
    return paths


def prediction(number: int, image: Path | str, **more: Any) -> dict[str, Any]:
    """Return a line of predictions.jsonl; every third answer is right."""
    right = number % 3 == 0
    return {
        "source": f"data.jsonl row {number} (line {number + 1})",
        "prompt": f"What is in image {number}?",
        "images": [str(image)],
        "generated": f"answer {number}" if right else "something else",
        "accepted": [f"answer {number}"],
        "exact": right,
        "scores": {"anls": 1.0 if right else number / 100},
        "loss": 0.5 + number,
        **more,
    }


def made_report(rows: int) -> dict[str, Any]:
    """Return a data report of one split, some of whose figures are the same in all rows."""
    spread = {"count": rows, "total": rows * 10, "least": 5, "median": 10, "high": 14, "most": 15}
    bars = {**spread, "edges": [5, 10, 15, 20], "counts": [1, rows - 2, 1]}
    same = {
        "count": rows,
        "total": rows,
        "least": 1,
        "median": 1,
        "high": 1,
        "most": 1,
        "edges": [1, 2],
        "counts": [rows],
    }
    assert set(bars) == set(same) == set(Distribution.__dataclass_fields__)
    split = {
        "rows": rows,
        "bad": 0,
        "layout": "question and answer",
        "columns": ["image: the images"],
        **dict.fromkeys(("tokens", "supervised", "image_tokens", "widths", "heights"), bars),
        "pictures": same,
        "unanswered": 0,
        "unanswered_rows": [],
        "repeated": 0,
        "supervised_share": 0.25,
    }
    return {"rows": rows, "bad_rows": 0, "bad": [], "leaked": 0, "image_size": "64x64", "splits": {"train": split}}


def make_run(
    folder: Path,
    predictions: Sequence[Mapping[str, Any]] = (),
    *,
    settings: Mapping[str, Any] | None = None,
    log: Sequence[Mapping[str, Any]] | None = None,
    results: Mapping[str, Any] | None = None,
) -> Path:
    """Write a finished run."""
    folder.mkdir(parents=True)
    defaults = {"lora_alpha": 32.0, "report_to": "none", "weight_decay": 0.0}
    shown = {
        **defaults,
        "model_name_or_path": "a/model",
        "dataset_name": "data.jsonl",
        "lora_rank": 8,
        "learning_rate": 1e-3,
    }
    (folder / "run_config.yaml").write_text(yaml.safe_dump({**shown, **(settings or {})}), encoding="utf-8")
    state = {
        "global_step": STEPS,
        "max_steps": STEPS,
        "best_model_checkpoint": str(folder / "checkpoint-30"),
        "best_global_step": 30,
        "best_metric": 0.375,
        "log_history": list(made_log() if log is None else log),
    }
    write(folder / "trainer_state.json", state)
    known = {"eval_loss": 2.0 / 41, "eval_exact_match": 0.5, "eval_exact_match_interval": [0.25, 0.75]}
    write(folder / "eval_results.json", {**known, **(results or {})})
    write(folder / "all_results.json", {"train_runtime": 75.0, "train_loss": 0.4321})
    write(folder / "data_report.json", made_report(12))
    write(folder / "run.json", {"format": 1, "versions": {"torch": "2.9"}, "hardware": {"device": "cpu"}})
    if predictions:
        text = "".join(json.dumps(line) + "\n" for line in predictions)
        (folder / "predictions.jsonl").write_text(text, encoding="utf-8")
    return folder


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content), encoding="utf-8")
