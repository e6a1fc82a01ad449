"""The demo: the main job on a CPU, by the same commands that a user types.

A small Gemma3-architecture model of ours has learned to read rendered words and numbers and has never seen a
chart. It is LoRA-tuned to answer questions about bar charts and scored on charts it has not seen: before,
after, and with the images shuffled between the questions, which shows how much it answers by guessing.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vlm_lora import pipeline
from vlm_lora.config.sources import parse
from vlm_lora.demo.charts import write_chart_dataset
from vlm_lora.demo.reading import reading_accuracy
from vlm_lora.errors import ConfigError
from vlm_lora.evaluation.generation import ExactMatch
from vlm_lora.report.terminal.view import TerminalView

BASE = Path(__file__).parent / "base"
TRAIN_CHARTS, HELD_OUT_CHARTS, SEED = 5760, 600, 0

RECIPE = {
    "lora_rank": 32,
    "lora_alpha": 64,
    "learning_rate": 4e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "per_device_train_batch_size": 16,
    "max_steps": 360,
    "logging_steps": 40,
    # The best checkpoint, by the answers to 128 of the held-out charts, is what is kept.
    "eval_strategy": "steps",
    "eval_steps": 120,
    "eval_generate_samples": 128,
    "save_strategy": "steps",
    "save_steps": 120,
    "save_total_limit": 2,
    "metric_for_best_model": "eval_exact_match",
    "load_best_model_at_end": True,
    "early_stopping_patience": 2,
    "seed": SEED,
}


def run_demo(output: Path) -> None:
    """Run the demo into `output` and print what it found."""
    console = Console(highlight=False, soft_wrap=True)
    started = time.monotonic()
    data, shuffled, adapter = output / "charts", output / "charts-shuffled", output / "adapter"
    taken = [str(folder) for folder in (adapter, output / "before", output / "shuffled") if folder.exists()]
    if taken and not shuffled.is_dir():  # which the demo writes before them
        raise ConfigError(f"--output_dir {output}: {', '.join(taken)} would be replaced. Name another folder.")
    console.rule("Data: bar charts drawn from the tables that vega_datasets ships")
    charts = write_chart_dataset(data, train=TRAIN_CHARTS, validation=HELD_OUT_CHARTS, seed=SEED)
    console.print(
        f"{charts.train} charts to train on, {charts.validation} held out (other rows of {len(charts.tables)} tables); "
        f"the commonest answer to each kind of question is right for {charts.guess_accuracy:.1%}"
    )
    shuffle_images(data, shuffled)
    console.rule("Base model")
    console.print(_base_report())
    before = _run(console, "eval", BASE, data, output / "before", image_root=data)
    console.rule("LoRA")
    after = _run(console, "train", BASE, data, adapter, image_root=data, **RECIPE)
    console.rule("The saved adapter, reloaded from disk")
    control = _run(console, "eval", adapter, shuffled, output / "shuffled", image_root=data)
    console.print(_best(adapter))
    console.print(_results({"before": before, "after": after, "pictures shuffled": control}))
    _ask_one(console, adapter, data)
    console.print(f"Done in {time.monotonic() - started:.0f} s. Everything is under {output}.")


def shuffle_images(data: Path, target: Path) -> None:
    """Write the held-out rows again, each with the image of a row half the data set away."""
    rows = _rows(data / "validation.jsonl")
    target.mkdir(parents=True, exist_ok=True)
    half = len(rows) // 2
    with (target / "validation.jsonl").open("w", encoding="utf-8") as file:
        for index, row in enumerate(rows):
            other = rows[(index + half) % len(rows)]
            file.write(json.dumps({**row, "image": other["image"]}) + "\n")


def _run(
    console: Console, verb: str, model: Path, data: Path, output: Path, *, image_root: Path, **flags: Any
) -> dict[str, Any]:
    values = {
        "model_name_or_path": model,
        "dataset_name": data,
        "image_root": image_root,
        "image_backend": "pil",  # as the base was pre-trained
        "output_dir": output,
        "predict_with_generate": True,
        "max_new_tokens": 12,
        "per_device_eval_batch_size": 50,
        "overwrite_output_dir": True,
        "log_level": "warning",
        **flags,
    }
    words = [text for key, value in values.items() for text in (f"--{key}", str(value))]
    console.print(f"$ vlm-lora {verb} {' '.join(words)}", style="dim")
    run = parse([*words, "--do_train", str(verb == "train"), "--do_eval", "true"], environ=os.environ)
    return pipeline.train(run, observers=[TerminalView()])


def _best(adapter: Path) -> str:
    """Say which checkpoint is kept, and what each evaluation during training measured."""
    state = json.loads((adapter / "trainer_state.json").read_text(encoding="utf-8"))
    scores = [
        f"{entry['eval_exact_match']:.1%} at step {entry['step']}"
        for entry in state["log_history"]
        if "eval_exact_match" in entry
    ]
    kept = Path(state["best_model_checkpoint"]).name
    rows = RECIPE["eval_generate_samples"]
    return f"Exact match on {rows} held-out charts while it trained: {', '.join(scores)}. Kept: {kept}."


def _results(columns: dict[str, dict[str, Any]]) -> Table:
    table = Table("held-out charts", *columns)
    table.add_row("perplexity", *(f"{figures['eval_perplexity']:.3f}" for figures in columns.values()))
    scores = [
        ExactMatch(
            correct=round(figures["eval_exact_match"] * figures["eval_samples"]),
            total=figures["eval_samples"],
        )
        for figures in columns.values()
    ]
    table.add_row("exact match", *(str(score) for score in scores))
    return table


def _base_report() -> str:
    """Measure how well the base reads, on words and numbers it was not trained on."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(BASE).eval()
    processor = AutoProcessor.from_pretrained(BASE)
    size = sum(parameter.numel() for parameter in model.parameters())
    score = reading_accuracy(model, processor, samples=300, seed=1, device=model.device)
    return (
        f"{size / 1e6:.1f} million parameters; reads {score.correct} of {score.total} held-out rendered texts "
        "exactly; it has never seen a chart (vlm_lora/demo/base/PRETRAINING.json)"
    )


def _ask_one(console: Console, adapter: Path, data: Path) -> None:
    row = _rows(data / "validation.jsonl")[0]
    picture = data / row["image"]
    command = [
        "--model_name_or_path",
        str(adapter),
        "--log_level",
        "warning",
        "--output_dir",
        "unused",
    ]
    answer = pipeline.ask(parse(command, environ=os.environ), images=[picture], prompt=row["question"])
    console.print(f"$ vlm-lora ask --model_name_or_path {adapter} --image {picture} --prompt '{row['question']}'")
    console.print(f"{answer}   (the chart says: {row['answer']})")


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
