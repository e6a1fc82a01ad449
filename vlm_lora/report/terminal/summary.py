"""The end of a run in words: where its weights are, which checkpoint is best, what it scored, what to type next."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.whole_files import read_json
from vlm_lora.data.wording import counted
from vlm_lora.model.folder_faults import ADAPTER_FILE
from vlm_lora.progress import spell_rate, spell_seconds
from vlm_lora.report.run_page.drawing import NEEDS, can_draw
from vlm_lora.report.run_page.page import PAGE
from vlm_lora.report.terminal.evaluations import scores_of
from vlm_lora.report.terminal.words import spell_figure, spell_name, spell_path
from vlm_lora.serving.servable import in_one_line, read_facts
from vlm_lora.training.checkpoints.contents import STATE_FILE


@dataclass(kw_only=True)
class Seen:
    """What was seen of a run while it went on."""

    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)
    """Scores after each step that was evaluated during training."""
    saved: dict[int, Path] = field(default_factory=dict)
    """Checkpoints by their step."""
    seconds: float = 0
    """Of the whole run."""
    stopped: str = ""
    """Why the training ended before its last step, in a sentence; empty where it did not."""


def closing_lines(
    run: RunConfig, arguments: Any, results: Mapping[str, Any], seen: Seen, columns: int = 0
) -> list[str]:
    """Return the summary.

    Args:
        run: the resolved configuration.
        arguments: the training arguments.
        results: the figures of `all_results.json`.
        seen: what else is known.
        columns: of the terminal; 0 for lines however long. Commands are never wrapped: they are to be copied.
    """
    folder = Path(arguments.output_dir)
    said = [*(_trained(run, folder, results, seen) if arguments.do_train else _measured(run, folder, results, seen))]
    if arguments.do_train:
        said += [seen.stopped] if seen.stopped else []
        said += _skipped(results)
        said += _best(arguments, folder, seen)
    said += [*_scored(results), *_on_a_page(run, folder)]
    if arguments.do_train and run.tuning.peft_method == "lora":
        said += _served(folder)
    lines = [line for text in said for line in (textwrap.wrap(text, columns, **_WRAP) if columns else [text])]
    return [*lines, "Next:", *(f"  {command}" for command in _next(run, arguments, folder))]


_WRAP: Mapping[str, Any] = {"subsequent_indent": "  ", "break_on_hyphens": False, "break_long_words": False}


def _trained(run: RunConfig, folder: Path, results: Mapping[str, Any], seen: Seen) -> list[str]:
    what = "adapter" if run.tuning.peft_method == "lora" else "model"
    seconds, rate = results.get("train_runtime"), results.get("train_samples_per_second")
    steps = read_json(folder / STATE_FILE).get("global_step")
    took = f"Trained {counted(steps, 'step', form=',')}" if isinstance(steps, int) else "Trained"
    if seconds is not None:
        took += f" in {spell_seconds(seconds)}"
    if rate:
        took += f", {spell_rate(rate)} rows a second"
    return [f"{took}; {spell_seconds(seen.seconds)} in all.", f"The {what} is in {spell_path(folder)}."]


def _skipped(results: Mapping[str, Any]) -> list[str]:
    """Say how many steps made no update, where `--on_nonfinite skip_step` let the run go on after them."""
    count = results.get("train_skipped_steps")
    if not count:
        return []
    return [
        f"{count:,} step{'s' * (count != 1)} of them skipped: NaN or infinite loss or gradient; the log names rows."
    ]


def _measured(run: RunConfig, folder: Path, results: Mapping[str, Any], seen: Seen) -> list[str]:
    model = spell_path(str(run.model.model_name_or_path))
    return [f"Evaluated {model} in {spell_seconds(seen.seconds)}.", f"The results are in {spell_path(folder)}."]


def _best(arguments: Any, folder: Path, seen: Seen) -> list[str]:
    """Say which checkpoint is the best of those that are there, and by what."""
    state = read_json(folder / STATE_FILE)
    name, chosen = arguments.metric_for_best_model, state.get("best_model_checkpoint")
    if name and chosen:
        score = f"{spell_name(name)} {spell_figure(state['best_metric'])}"
        loaded = "; its weights were loaded at the end" if arguments.load_best_model_at_end else ""
        if not loaded and Path(chosen).name != f"checkpoint-{state.get('global_step')}":
            loaded = (
                f"; the weights in {spell_path(folder)} are the last step's (--load_best_model_at_end saves the best)"
            )
        return [f"The best checkpoint is {spell_path(chosen)}, by {score}{loaded}."]
    both = {step: seen.evaluations[step]["loss"] for step in seen.saved if "loss" in seen.evaluations.get(step, {})}
    there = {step: loss for step, loss in both.items() if seen.saved[step].is_dir()}
    if not there:
        return []
    step = min(there, key=lambda one: there[one])
    score = f"loss {spell_figure(there[step])}"
    return [f"The best checkpoint that is kept is {spell_path(seen.saved[step])}, by {score} on the validation rows."]


def _scored(results: Mapping[str, Any]) -> list[str]:
    """Say what the evaluation at the end found, with intervals where they are known."""
    scores = scores_of(results)
    if not scores:
        return []
    words = []
    for name, value in scores.items():
        interval = results.get(f"eval_{name}_interval")
        if interval is None and f"eval_{name}_low_95" in results:
            interval = (results[f"eval_{name}_low_95"], results[f"eval_{name}_high_95"])
        between = "" if interval is None else f" ({spell_figure(interval[0])} to {spell_figure(interval[1])})"
        words.append(f"{spell_name(name)} {spell_figure(value)}{between}")
    rows = results.get("eval_samples")
    where = "the validation rows" if rows is None else counted(rows, "validation row", form=",")
    return [f"On {where}: {', '.join(words)}."]


def _on_a_page(run: RunConfig, folder: Path) -> list[str]:
    """Say where the page of the run is, or how to have one."""
    if (folder / PAGE).is_file():
        return [f"All of it on a page: {spell_path(folder / PAGE)}"]
    if run.reporting.report_page and not can_draw():
        return [f"To see it on a page: {NEEDS}, then vlm-lora report {spell_path(folder)}"]
    return []


def _served(folder: Path) -> list[str]:
    """Say which servers load the adapter as it is."""
    if not (folder / ADAPTER_FILE).is_file():
        return []
    return [f"Serving: {in_one_line(read_facts(folder))} (vlm-lora servable {spell_path(folder)} says why)."]


def _next(run: RunConfig, arguments: Any, folder: Path) -> list[str]:
    weights = str(folder if arguments.do_train else run.model.model_name_or_path)
    commands = [["ask", "--model_name_or_path", weights, "--image", "FILE", "--prompt", "QUESTION"]]
    name = "validation_name" if run.data.validation_name else "dataset_name"
    evaluation = ["eval", "--model_name_or_path", weights, f"--{name}", str(getattr(run.data, name))]
    if not run.generation.predict_with_generate:
        evaluation.append("--predict_with_generate")
    if arguments.do_train:
        commands.append(evaluation)
    elif not run.generation.predict_with_generate:
        commands.insert(0, evaluation)
    return [
        shlex.join(["vlm-lora", *command]).replace("--prompt QUESTION", '--prompt "QUESTION"') for command in commands
    ]
