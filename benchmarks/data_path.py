"""CPU time of the data path, from a row's place to the tensors that a model is called with, beside TRL's collator.

    python -m benchmarks.data_path [--rows 24] [--rounds 5]

Gemma 3's image processor at 896 pixels, float32, photo-like JPEG files of 500 x 333 pixels, one image a row, batches of
four, one thread. Each round is one epoch of TRL's (`datasets` decodes, its collator prepares) and of ours: the check
that reads every row before training, a first and a second epoch, once without and once with `--image_cache`, each time
in an empty folder. Pixel values and ids are compared with TRL's before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from benchmarks import ROOT
from benchmarks.figures import Figure, spread
from benchmarks.folders import processor_of
from benchmarks.shapes import SHAPES

BATCH = 4
SIDE, IMAGE_TOKENS = 896, 256
JPEG = (500, 333)
FIRST, LATER = 1.30, 0.15
"""The goals: check and first epoch together, and each later epoch, against TRL's."""
BACKENDS = ("pil", "torchvision")


def write_photos(folder: Path, rows: int) -> Path:
    """Write train.jsonl and a photo-like JPEG a row: smooth, with a little noise; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    lines = []
    for row in range(rows):
        coarse = Image.fromarray(generator.integers(0, 256, (12, 18, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(JPEG, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2)))
        noisy = np.clip(smooth + generator.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{row}.jpg", quality=90)
        lines.append({"image": f"{row}.jpg", "question": f"What is in picture {row}?", "answer": "a red bus"})
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return folder


def cpu_of(work: Callable[[], object]) -> float:
    """Return the CPU seconds that this process takes for something."""
    began = time.process_time()
    work()
    return time.process_time() - began


class Theirs:
    """TRL's path: `datasets` decodes, TRL's collator prepares."""

    def __init__(self, processor: Any, data: Path) -> None:
        from datasets import Dataset, Features, Sequence, Value
        from datasets import Image as ImageFeature
        from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

        rows = [json.loads(line) for line in (data / "train.jsonl").read_text(encoding="utf-8").splitlines()]
        turn = [{"role": Value("string"), "content": Value("string")}]
        self._rows = Dataset.from_list(
            [
                {
                    "prompt": [{"role": "user", "content": row["question"]}],
                    "completion": [{"role": "assistant", "content": row["answer"]}],
                    "images": [str(data / row["image"])],
                }
                for row in rows
            ],
            features=Features({"prompt": turn, "completion": turn, "images": Sequence(ImageFeature())}),
        )
        self._collate = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)

    def batch(self, start: int) -> Any:
        """Return the batch that begins with a row."""
        return self._collate([self._rows[row] for row in range(start, start + BATCH)])

    def epoch(self) -> None:
        """Make all batches."""
        for start in range(0, len(self._rows), BATCH):
            self.batch(start)


class Ours:
    """Our path: the check of every row, and epochs of the collator."""

    def __init__(self, processor: Any, data: Path, cache: Path | None) -> None:
        from vlm_lora.batching.collator import Collator
        from vlm_lora.batching.encoding import RowEncoder
        from vlm_lora.batching.prepared.store import TensorStore
        from vlm_lora.batching.style import style_for
        from vlm_lora.config.run_config import DataConfig
        from vlm_lora.data.dataset import load_splits
        from vlm_lora.preflight.inspection import Inspection

        tokenizer = processor.tokenizer
        end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
        encoder = RowEncoder(processor, style_for("gemma3"), eos_token_ids=frozenset({end}), max_length=None)
        if cache is not None:
            encoder = encoder.keeping_images(TensorStore(cache))
        config = DataConfig(dataset_name=str(data / "train.jsonl"), validation_fraction=0.0)
        self._rows: Any = load_splits(config, need_train=True, need_validation=False).train
        self._inspect = Inspection(self._rows, encoder)
        self._collate = Collator(encoder, style_for("gemma3"), pad_token_id=tokenizer.pad_token_id)

    def batch(self, start: int) -> Any:
        """Return the batch that begins with a row."""
        return self._collate([self._rows[row] for row in range(start, start + BATCH)])

    def check(self) -> None:
        """Read every row as the check before training does."""
        bad = [record.reason for record in map(self._inspect, range(len(self._rows))) if record.kind]
        if bad:
            raise SystemExit(f"The check found bad rows: {bad[0]}")

    def epoch(self) -> None:
        """Make all batches."""
        for start in range(0, len(self._rows), BATCH):
            self.batch(start)


@dataclass(frozen=True, kw_only=True)
class Round:
    """CPU seconds of one round."""

    theirs: float
    check: float
    first: float
    later: float
    cached_check: float
    cached_first: float
    cached_later: float
    check_again: float
    """The check of rows whose images an earlier run has prepared."""


def compare_tensors(theirs: Theirs, ours: Ours) -> None:
    """Stop where ids or pixel values of the first batch are not those that TRL's collator makes.

    Raises:
        SystemExit: names what differs.
    """
    import torch

    one, other = theirs.batch(0), ours.batch(0)
    for name in ("input_ids", "labels", "pixel_values"):
        if one[name].dtype != other[name].dtype or not torch.equal(one[name], other[name]):
            raise SystemExit(f"{name} of the first batch is not what TRL's collator makes: nothing is timed.")


def measure(place: Path, *, rows: int, rounds: int) -> dict[str, list[Round]]:
    """Return what each round took, by image backend.

    Args:
        place: a folder for models, data and caches.
        rows: of the data set, a multiple of the batch.
        rounds: how many.
    """
    import torch
    from transformers import AutoProcessor

    from support.tiny.folders import save_processor
    from vlm_lora.compat import load_image_processor

    torch.set_num_threads(1)
    folder = place / "processor"
    folder.mkdir(parents=True, exist_ok=True)
    save_processor(processor_of(replace(SHAPES["Gemma3"], side=SIDE, image_tokens=IMAGE_TOKENS)), folder)
    data = write_photos(place / f"photos-{rows}", rows)
    found: dict[str, list[Round]] = {}
    for backend in BACKENDS:
        processor, their = (AutoProcessor.from_pretrained(folder) for _ in range(2))
        processor.image_processor = load_image_processor(str(folder), backend)
        their.image_processor = load_image_processor(str(folder), "torchvision")
        theirs, plain = Theirs(their, data), Ours(processor, data, None)
        if backend == "torchvision":
            compare_tensors(theirs, plain)
            compare_tensors(theirs, Ours(processor, data, place / "compared"))
        found[backend] = []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory(dir=place) as empty:
                cached = Ours(processor, data, Path(empty))
                found[backend].append(
                    Round(
                        theirs=cpu_of(theirs.epoch),
                        cached_check=cpu_of(cached.check),
                        cached_first=cpu_of(cached.epoch),
                        cached_later=cpu_of(cached.epoch),
                        check=cpu_of(plain.check),
                        first=cpu_of(plain.epoch),
                        later=cpu_of(plain.epoch),
                        check_again=cpu_of(Ours(processor, data, Path(empty)).check),
                    )
                )
    return found


def figures(place: Path, rounds: int, rows: int = 24) -> list[Figure]:
    """Return the figures of `python -m benchmarks`: ratios to TRL's collator, and what the check costs."""
    found: list[Figure] = []
    for backend, measured in measure(place / "data-path", rows=rows, rounds=min(rounds, 5)).items():

        def ratios(*parts: str, of: Sequence[Round] = measured) -> list[float]:
            return [sum(getattr(one, part) for part in parts) / one.theirs for one in of]

        def per_thousand(part: str, of: Sequence[Round] = measured) -> float:
            return float(np.median([getattr(one, part) for one in of])) / rows * 1000

        goals = (FIRST, LATER) if backend == "torchvision" else (None, None)
        found += [
            spread(
                f"{backend}: check and first epoch / TRL's epoch", ratios("cached_check", "cached_first"), goal=goals[0]
            ),
            spread(f"{backend}: later epochs / TRL's epoch", ratios("cached_later"), goal=goals[1]),
            spread(f"{backend}, no image cache: check and first epoch / TRL's epoch", ratios("check", "first")),
            spread(f"{backend}, no image cache: later epochs / TRL's epoch", ratios("later")),
        ]
        for name, part in (
            ("no image cache", "check"),
            ("images being prepared", "cached_check"),
            ("images prepared before", "check_again"),
        ):
            found.append(
                Figure(name=f"{backend}: check of 1,000 rows, {name}", value=per_thousand(part), unit="CPU seconds")
            )
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="data-path-") as place:
        for figure in figures(Path(place), given.rounds, given.rows - given.rows % BATCH):
            print(figure.line())
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
