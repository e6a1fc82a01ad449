"""The checkpoints in an output folder: step, date, and whether each has all that a resumed run reads."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path

from vlm_lora.errors import ConfigError

_NAME = re.compile(r"checkpoint-(\d+)")
_STATE, _TRAINING = "trainer_state.json", ("optimizer.pt", "scheduler.pt")
_WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")
_ENGINES = ("global_step*", "pytorch_model_fsdp*", "optimizer_*", "latest")
"""What DeepSpeed and FSDP write in the place of `optimizer.pt`."""


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
    return "\n".join(_line(number, path) for number, path in found)


def missing_parts(checkpoint: Path) -> list[str]:
    """Return what a checkpoint lacks, as file names with the fault; empty where it is complete.

    Files that exist and have content count: their content is not read, but for the weights' header and index.
    """
    faults = [] if _step(checkpoint) is not None else [f"{_STATE} (missing or not readable)"]
    weights = [checkpoint / name for name in _WEIGHTS if (checkpoint / name).is_file()]
    engine = any(_has_content(path) for pattern in _ENGINES for path in checkpoint.glob(pattern))
    if not weights and not engine:
        faults.append(f"weights (none of {', '.join(_WEIGHTS)})")
    for file in [shard for path in weights for shard in _files_of(path)]:
        fault = _safetensors_fault(file)
        if fault:
            faults.append(f"{file.name} ({fault})")
    faults += [f"{name} (missing or empty)" for name in _TRAINING if not engine and not _has_content(checkpoint / name)]
    return faults


def _line(number: int, path: Path) -> str:
    step = _step(path)
    faults = missing_parts(path)
    date = datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M:%S")
    says = f"step {number}" if step in (number, None) else f"step {step} (its name says {number})"
    return f"{path.name}  {says}  {date}  {'complete' if not faults else 'incomplete: ' + ', '.join(faults)}"


def _step(path: Path) -> int | None:
    """Return the step that the trainer's state names; None where the file is not there or broken."""
    try:
        step = json.loads((path / _STATE).read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None


def _has_content(path: Path) -> bool:
    return path.is_dir() or (path.is_file() and path.stat().st_size > 0)


def _files_of(weights: Path) -> list[Path]:
    """Return the safetensors files that a weights file or an index of several names."""
    if weights.suffix != ".json":
        return [weights]
    try:
        shards = set(json.loads(weights.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [weights]
    return [weights.parent / str(name) for name in sorted(map(str, shards))]


def _safetensors_fault(file: Path) -> str:
    """Say what is wrong with a safetensors file's header or length; empty where nothing is."""
    if not file.is_file():
        return "missing"
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > size - 8:
            return "cut off"
        try:
            entries = json.loads(opened.read(length))
            end = max(
                (entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0
            )
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return "not readable"
    return "cut off" if 8 + length + end > size else ""
