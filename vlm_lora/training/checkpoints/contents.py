"""What a checkpoint holds: whose state it is, and which parts of it are missing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_lora.errors import ConfigError

STATE_FILE = "trainer_state.json"
WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")

ENGINES: Mapping[str, tuple[str, ...]] = {
    "DeepSpeed": ("global_step*",),
    "FSDP": ("pytorch_model_fsdp*", "optimizer.bin", "optimizer_*"),
    "no engine": ("optimizer.pt",),
}
"""The optimizer's state as each engine writes it; plain data parallelism and one process are `no engine`."""

FLAGS = {"DeepSpeed": "add --deepspeed", "FSDP": "add --fsdp", "no engine": "leave --deepspeed and --fsdp out"}
"""What to type to run with each."""


def refuse_to_resume(checkpoint: Path, engine: str) -> None:
    """Refuse a checkpoint from which training would not go on, but begin anew with other weights.

    Args:
        checkpoint: its folder.
        engine: the run's, of `ENGINES`.

    Raises:
        ConfigError: names the missing files, or both engines, and what to type.
    """
    missing = missing_parts(checkpoint)
    if missing:
        raise ConfigError(
            f"--resume_from_checkpoint {checkpoint}: {', '.join(missing)}. Without them training would not go on but "
            "begin anew; runs with --save_only_model true save no optimizer and schedule. Type another checkpoint "
            f"(vlm-lora train --list_checkpoints {checkpoint.parent} says which are complete), or start afresh in "
            "another --output_dir."
        )
    saved = state_of(checkpoint)
    if saved != engine:
        raise ConfigError(
            f"--resume_from_checkpoint {checkpoint}: its optimizer was saved with {saved}, and this run has {engine}, "
            f"which cannot read it. To go on, {FLAGS[str(saved)]} as in the checkpoint's run; or start afresh in "
            "another --output_dir."
        )


def state_of(checkpoint: Path) -> str | None:
    """Return the engine of `ENGINES` whose state a checkpoint holds; None where it holds none."""
    for engine, patterns in ENGINES.items():
        if any(_has_content(path) for pattern in patterns for path in checkpoint.glob(pattern)):
            return engine
    return None


def missing_parts(checkpoint: Path) -> list[str]:
    """Return what a checkpoint lacks, as file names with the fault; empty where it is complete.

    Files that exist and have content count: their content is not read, but for the weights' header and index.
    """
    faults = [] if step_of(checkpoint) is not None else [f"{STATE_FILE} (missing or not readable)"]
    weights = [checkpoint / name for name in WEIGHTS if (checkpoint / name).is_file()]
    engine = state_of(checkpoint)
    if not weights and engine in (None, "no engine"):
        faults.append(f"weights (none of {', '.join(WEIGHTS)})")
    for file in [shard for path in weights for shard in _files_of(path)]:
        fault = _safetensors_fault(file)
        if fault:
            faults.append(f"{file.name} ({fault})")
    # DeepSpeed may have a schedule of its own, which its folder holds; `latest` names that folder.
    training = ["latest"] if engine == "DeepSpeed" else ["scheduler.pt"]
    training = ["optimizer.pt", *training] if engine is None else training
    return faults + [f"{name} (missing or empty)" for name in training if not _has_content(checkpoint / name)]


def step_of(checkpoint: Path) -> int | None:
    """Return the step that the trainer's state names; None where the file is not there or broken."""
    try:
        step = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
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
            entries: dict[str, Any] = json.loads(opened.read(length))
            end = max(
                (entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0
            )
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return "not readable"
    return "cut off" if 8 + length + end > size else ""
