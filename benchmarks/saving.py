"""What a checkpoint's manifest costs: how long training stands still for a save, with it and without.

    python -m benchmarks.saving [--rounds 10] [--folder PLACE]

A real training of each of two kinds: LoRA on a tiny model (some 300 kB a checkpoint) and full weights (1.1 GB). At each
step a checkpoint is saved, in turns as it is and without a manifest, into a folder that is removed afterwards; nothing
that is dirty is left to the disk from the turn before. `until whole` is from the start of a save to its manifest where
nothing else is done meanwhile: what a large one costs the processor and the disk in all.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.figures import Figure, spread
from benchmarks.folders import build_folder, write_rows
from benchmarks.shapes import SHAPES, Shape

MOST_SMALL, MOST_RATIO = 0.150, 1.3
"""Seconds of a small save, and what a large one may take of the time that it takes without a manifest."""

LARGE = replace(SHAPES["LLaVA"], hidden=1024, layers=5, tower_hidden=64, tower_layers=1, side=56)
"""About 90 million weights: 360 MB, and twice that for Adam."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of a way to save, one a turn."""

    stands: list[float] = field(default_factory=list)
    """The training stands still."""
    whole: list[float] = field(default_factory=list)
    """Until the checkpoint counts."""


class InTurns:
    """Saves each checkpoint as it is or without a manifest, in turns, and takes the times of it."""

    def __init__(self) -> None:
        self.times = {True: Times(), False: Times()}
        self.size = 0
        self._turn = 0

    def watch(self, save: Callable[..., None]) -> Callable[..., None]:
        """Return what does as a trainer's `_save_checkpoint`."""

        def timed(trainer: Any, *args: Any, **kwargs: Any) -> None:
            sealed, self._turn = self._turn % 2 == 1, self._turn + 1
            path = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
            os.sync()
            with ExitStack() as stack:
                if not sealed:
                    stack.enter_context(patch("vlm_lora.training.checkpoints.rotation.begin_checkpoint", _nothing))
                    stack.enter_context(patch("vlm_lora.training.checkpoints.rotation.prepare_seal", _nothing))
                start = time.perf_counter()
                save(trainer, *args, **kwargs)
                stands = time.perf_counter() - start
                trainer.sealer.finish()
                whole = time.perf_counter() - start
            self.size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            if self._turn > 2:  # the first of each warms up
                self.times[sealed].stands.append(stands)
                self.times[sealed].whole.append(whole)
            shutil.rmtree(path)

        return timed


def _nothing(*args: Any, **kwargs: Any) -> Callable[[], None]:
    return lambda: None


def measure(place: Path, name: str, shape: Shape, flags: Mapping[str, Any], rounds: int) -> InTurns:
    """Train, saving in turns, `rounds` times each way."""
    from vlm_lora.config.sources import parse
    from vlm_lora.pipeline import train
    from vlm_lora.training.trainer import VlmTrainerMixin

    data = write_rows(place / f"rows-{shape.side}", [(row, 8, 4) for row in range(4)], side=shape.side)
    output = place / f"saved-{name}"
    shutil.rmtree(output, ignore_errors=True)
    given = {
        "model_name_or_path": build_folder(shape, place / f"model-{name}"),
        "dataset_name": data,
        "output_dir": output,
        "do_train": "true",
        "max_steps": 2 * (rounds + 1),
        "save_strategy": "steps",
        "save_steps": 1,
        "per_device_train_batch_size": 1,
        "validation_fraction": 0,
        "report_to": "none",
        "cache_vision_features": "off",
        **flags,
    }
    turns = InTurns()
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    with patch.object(VlmTrainerMixin, "_save_checkpoint", turns.watch(VlmTrainerMixin._save_checkpoint)):
        train(parse(words, environ={}))
    shutil.rmtree(output)
    return turns


def figures(place: Path, rounds: int) -> list[Figure]:
    """Measure both sizes."""
    found = []
    kinds: Mapping[str, tuple[Shape, Mapping[str, Any]]] = {
        "LoRA": (replace(LARGE, hidden=64, layers=2), {}),
        "full weights": (LARGE, {"peft_method": "none", "learning_rate": 1e-5}),
    }
    for name, (shape, flags) in kinds.items():
        turns = measure(place, name.replace(" ", "-"), shape, flags, rounds)
        sealed, plain = turns.times[True], turns.times[False]
        what = f"{name}, {turns.size / 1e6:,.3g} MB"
        small = turns.size < 1e8
        found += [
            spread(
                f"{what}: training stands still, seconds",
                sealed.stands,
                goal=MOST_SMALL if small else None,
                note=f"{statistics.median(plain.stands):.3g} without a manifest",
            ),
            spread(
                f"{what}: the same, with / without a manifest",
                [one / other for one, other in zip(sealed.stands, plain.stands, strict=True)],
                goal=None if small else MOST_RATIO,
            ),
            spread(f"{what}: until whole, seconds", sealed.whole),
        ]
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="saves of each kind, each way (10)")
    parser.add_argument("--folder", type=Path, help="where all is made (a temporary folder)")
    own = parser.parse_args()
    place = own.folder or Path(tempfile.mkdtemp(prefix="benchmarks-"))
    try:
        for figure in figures(place, own.rounds):
            print(figure.line())
    finally:
        if own.folder is None:
            shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
