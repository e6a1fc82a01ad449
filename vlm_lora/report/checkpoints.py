"""The checkpoints in an output folder: step, date, and whether each has all that a resumed run reads."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

from vlm_lora.errors import ConfigError
from vlm_lora.training.checkpoints.contents import missing_parts, step_of
from vlm_lora.training.checkpoints.run_record import RECORD, read_record

_NAME = re.compile(r"checkpoint-(\d+)")


def describe_checkpoints(folder: Path) -> str:
    """Return one line per `checkpoint-N` folder, in the order of N: name, step, date, complete or what is missing.

    Raises:
        ConfigError: there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"--list_checkpoints {folder}: no such folder.")
    found = sorted(
        (int(match[1]), child)
        for child in folder.iterdir()
        if child.is_dir() and (match := _NAME.fullmatch(child.name))
    )
    if not found:
        return f"{folder} holds no checkpoint-N folder."
    record = read_record(folder)
    lists = record.checkpoints is not None
    return "\n".join(
        _line(number, path) + (f"; on no list in {RECORD}" if lists and not record.lists(path.name) else "")
        for number, path in found
    )


def _line(number: int, path: Path) -> str:
    step = step_of(path)
    faults = missing_parts(path)
    date = datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M:%S")
    says = f"step {number}" if step in (number, None) else f"step {step} (its name says {number})"
    return f"{path.name}  {says}  {date}  {'complete' if not faults else 'incomplete: ' + ', '.join(faults)}"
