"""Which run is interrupted: what it trains, on how many ranks, by which engine, and on which device."""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.interrupted.forks import Start, import_all, in_fork
from support.rows import write_uneven_rows
from support.runs import script_flags

LORA: dict[str, object] = {"learning_rate": 1e-2, "lora_dropout": 0.1}
METHODS: dict[str, dict[str, object]] = {
    "lora": LORA,
    "full": {"learning_rate": 1e-3, "peft_method": "none", "freeze_vision": False},
    "streaming": {**LORA, "streaming": True, "shuffle_buffer": 4},
    "tars": LORA,
    "mixture": {**LORA, "dataset_weights": "[1, 0.5]"},
    "grouping": {**LORA, "train_sampling_strategy": "group_by_length"},
    "packing": {**LORA, "packing": True, "pack_length": 200, "per_device_train_batch_size": 1},
}
ENGINES: dict[str, dict[str, object]] = {
    "ddp": {"ddp_backend": "gloo"},
    "fsdp": {"fsdp": True},
    "zero2": {"deepspeed": "zero2"},
    "zero3": {"deepspeed": "zero3"},
}
WHOLE = 3600.0
"""Seconds that a start may take that nobody interrupts."""

WEIGHTS = ("adapter_model.safetensors", "model.safetensors")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the scripts have in common."""
    parser.add_argument("folder", type=Path, help="an empty one, or none yet")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and whatever else is drawn")
    parser.add_argument("--method", choices=METHODS, default="lora")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--engine", choices=ENGINES, default="ddp", help="where there are several ranks")
    parser.add_argument("--hpu", action="store_true", help="on the simulated device of the environment")
    parser.add_argument("--workers", type=int, default=0, help="of the data loader")
    parser.add_argument(
        "--background",
        action="store_true",
        help="save often, and give each checkpoint its manifest as a large one gets it, while the training goes on",
    )


@dataclass(kw_only=True)
class Kind:
    """A run that can be started into any folder.

    Attributes:
        chosen: what was asked for: see `add_arguments`.
        model, data: what it trains.
        settings: its further flags.
        chance: where every random choice comes from.
        whole: the output folder of a start that nobody interrupted.
        seconds: how long such a start takes.
        begins: how long it takes until its first step.
    """

    chosen: argparse.Namespace
    model: Path
    data: Path
    settings: dict[str, object]
    chance: random.Random
    whole: Path
    seconds: float = 0.0
    begins: float = 0.0

    def words(self, output: Path) -> list[str]:
        """Return the command line's words: the same for every start into this folder."""
        words = script_flags(self.model, self.data, output, **self.settings)
        if not self.chosen.hpu:
            return words
        place = words.index("--use_cpu")
        return [*words[:place], *words[place + 2 :], "--use_habana"]

    def start(self, output: Path, *, cache: Path | None = None, watch: Any = None, tells: bool = False) -> Start:
        """Start it.

        Args:
            output: where.
            cache: the folder of its caches; None for one that all starts share.
            watch: called in each rank with its number before it runs.
            tells: note afterwards what it imported, and the watch's attribute `counts`.
        """
        cache = cache or self.chosen.folder / "cache"

        def before(rank: int) -> None:
            os.environ["VLM_LORA_CACHE"] = str(cache)
            if self.chosen.background:
                from vlm_lora.training.checkpoints import background

                background.LARGE = 0
            if self.chosen.engine == "fsdp" and self.chosen.ranks > 1:
                from support import fsdp_on_cpu

                fsdp_on_cpu.install()
            if watch is not None:
                watch(rank)

        return Start(
            self.words(output),
            self.chosen.folder / "log",
            ranks=self.chosen.ranks,
            before=before,
            after=(lambda: getattr(watch, "counts", None)) if tells else None,
        )

    def run_whole(self, watch: Callable[[Path, Path], Any] = lambda output, cache: None, *, again: bool = True) -> Any:
        """Run it whole, and again in a fork of a process that has imported all; return what was told.

        Args:
            watch: returns, for an output folder and one of caches, what `start` takes as its `watch`.
            again: run it a second time, too: what is measured is then without imports.

        Raises:
            RuntimeError: it failed, or two runs that nobody interrupts differ already.
        """
        told = None
        for output in (self.whole, *([self.whole.with_name("whole-again")] if again else [])):
            begun, cache = time.monotonic(), output.with_suffix(".cache")
            started = self.start(output, cache=cache, watch=watch(output, cache), tells=True)
            started.wait_for_step(1)
            self.begins = time.monotonic() - begun
            codes = started.wait(WHOLE)
            self.seconds = time.monotonic() - begun
            faults = [*started.orphans(), *([] if any(codes) else self.differences(output))]
            if any(codes) or faults:
                raise RuntimeError(f"nobody interrupted it: {codes}, {faults}: {started.said()[-3000:]}")
            told = import_all(self.chosen.folder / "told.json")
        return told

    def note(self, report: dict[str, Any]) -> None:
        """Write down what a report says so far: `report.json`."""
        (self.chosen.folder / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")

    def differences(self, output: Path) -> list[str]:
        """Return what is wrong with a folder whose run has ended."""
        from vlm_lora.model.manifest import State, examine

        verdicts = {place: examine(place) for place in (output, *output.glob("checkpoint-*"))}
        faults = [
            f"{place}: {each.state.value} {each}" for place, each in verdicts.items() if each.state is not State.WHOLE
        ]
        names = [name for name in WEIGHTS if (self.whole / name).exists()]
        if [name for name in names if (output / name).read_bytes() != (self.whole / name).read_bytes()] or not names:
            faults.append(f"{output.name} ended with other weights")
        if (found := state_of(output).get("state")) != "done":
            faults.append(f"{output.name} ended, and RUN_STATE.json says {found}")
        return faults


def state_of(output: Path) -> dict[str, Any]:
    """Return what RUN_STATE.json says; nothing where there is none."""
    path = output / "RUN_STATE.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def prepare(chosen: argparse.Namespace, *, rows: int, **settings: object) -> Kind:
    """Make model and data, and say what is run on them."""
    chosen.folder.mkdir(parents=True, exist_ok=True)
    model = chosen.folder / "model"

    def build() -> None:
        from support.tiny import build_model_folder

        build_model_folder("gemma3", model)

    in_fork(build)
    data = write_data(chosen.method, chosen.folder, rows=rows)
    common: dict[str, object] = {
        "do_train": True,
        "do_eval": True,
        "per_device_train_batch_size": 2,
        "resume_from_checkpoint": "auto",
        "dataloader_num_workers": chosen.workers,
    }
    if chosen.method == "streaming":
        common["validation_name"] = chosen.folder / "data" / "validation.jsonl"
    # The simulated device has its own way between ranks.
    engine = ENGINES[chosen.engine] if chosen.ranks > 1 and (chosen.engine != "ddp" or not chosen.hpu) else {}
    often = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2} if chosen.background else {}
    return Kind(
        chosen=chosen,
        model=model,
        data=chosen.folder / "data",
        settings={**common, **METHODS[chosen.method], **engine, **settings, **data, **often},
        chance=random.Random(chosen.seed),
        whole=chosen.folder / "whole",
    )


def write_data(method: str, folder: Path, *, rows: int) -> dict[str, object]:
    """Write what is trained on; return the flags that name it where it is not the folder `data` alone."""
    from support.tars import write_chart_tar

    if method == "tars":
        for name, numbers in (
            ("train-0", range(rows // 2)),
            ("train-1", range(9, 9 + rows - rows // 2)),
            ("eval", [7, 8]),
        ):
            write_chart_tar(folder / "data" / f"{name}.tar", numbers)
        return {}
    write_uneven_rows(folder / "data", rows=rows, validation=2)
    if method != "mixture":
        return {}
    write_uneven_rows(folder / "more", rows=rows, validation=2)
    return {"dataset_name": f"{folder / 'data'} + {folder / 'more'}"}


def finish(report: dict[str, Any], write: Callable[[str], object]) -> int:
    """Write a report; return the exit code: 1 where it has faults."""
    write(json.dumps(report, indent=2) + "\n")
    return 1 if report["faults"] else 0
