"""What is said before the first step: data, masks, what trains, device, precision, steps. A line or two each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_lora.data.wording import counted
from vlm_lora.report.terminal.words import labelled, spell_path
from vlm_lora.training.observers import Beginning, CheckedData


def title(verb: str, model: str, data: str, columns: int) -> list[str]:
    """Say what is done with which model and data."""
    return labelled(verb, f"{spell_path(model)} on {spell_path(data)}", columns)


def data_lines(checked: CheckedData | None, columns: int) -> list[str]:
    """Say how many rows there are, how many are bad, where the report is, and how much is learned from."""
    if checked is None:
        return labelled("Data", "rows are not checked (--skip_check)", columns)
    splits: Mapping[str, Mapping[str, Any]] = checked.report["splits"]
    purposes = _PURPOSES if "train" in splits else {"validation": _ALONE}
    rows = ", ".join(_purpose(split["rows"], purposes.get(name, name)) for name, split in splits.items())
    lines = labelled("Data", f"{rows}; {checked.bad:,} bad; report: {spell_path(checked.path)}", columns)
    learned = splits.get("train") or next(iter(splits.values()), None)
    if learned is None:
        return lines
    kind = "tokens" if "train" in splits else "validation tokens"
    share = f"{learned['supervised_share']:.1%} of {learned['tokens']['total']:,} {kind} are supervised (the answers)"
    empty = learned["unanswered"]
    said = f"{share}; {counted(empty, 'row has', 'rows have', form=',')} an empty answer" if empty else share
    return lines + labelled("Masks", said, columns)


_PURPOSES = {"train": "rows to train on", "validation": "to validate"}
_ALONE = "rows to evaluate"


def _purpose(count: int, words: str) -> str:
    return counted(count, words.replace("rows", "row"), words, form=",")


def beginning_lines(beginning: Beginning, tuned: str, columns: int) -> list[str]:
    """Say what trains, where, in which precision, and for how long.

    Args:
        beginning: what the training is.
        tuned: how it is tuned, such as `LoRA of rank 16`.
        columns: of the terminal; 0 for lines however long.
    """
    share = beginning.trainable / max(beginning.parameters, 1)
    count = f"{beginning.trainable:,} of {beginning.parameters:,} parameters ({share:.2%}), {tuned}"
    processes = "" if beginning.processes == 1 else f", {beginning.processes} processes"
    begun = f"{beginning.step:,} are made, to {beginning.steps:,}" if beginning.step else f"{beginning.steps:,}"
    epochs = "" if beginning.epochs is None else f" ({counted(beginning.epochs, 'epoch', form='.4g')})"
    steps = (
        f"{begun}, of {beginning.rows_a_step:,} {beginning.unit} each{epochs}; "
        f"evaluated {beginning.evaluates}, saved {beginning.saves}"
    )
    return [
        *labelled("Trainable", count, columns),
        *labelled("Device", f"{beginning.device}{processes}", columns),
        *labelled("Precision", beginning.precision, columns),
        *labelled("Steps", steps, columns),
    ]
