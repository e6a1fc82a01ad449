"""Rows whose images are asked about twice, and the flags of runs that keep their features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlm_lora.training.feeding.vision_features import FOLDER

ADAPTER = "adapter_model.safetensors"
FLAGS: dict[str, Any] = {
    "do_train": True,
    "do_eval": True,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 3,
    "learning_rate": 1e-2,
    "lora_rank": 4,
}
QUESTIONS = ("What is shown?", "Which colour is the large one on the left?")


def write_asked_twice(folder: Path, *, images: int = 3) -> Path:
    """Write rows with two questions an image, of several sizes, one row with two images, and one without any."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number in range(images):
        name = f"{number}.png"
        size = (32 + 16 * number, 40, 3)
        Image.fromarray(generator.integers(0, 256, size, dtype=np.uint8)).save(folder / name)
        rows += [{"image": [name], "question": each, "answer": f"number {number}"} for each in QUESTIONS]
    (folder / "validation.jsonl").write_text("\n".join(map(json.dumps, rows[:3])) + "\n", encoding="utf-8")
    rows += [{"image": ["0.png", "1.png"], "question": "Which differ?", "answer": "both"}]
    rows += [{"image": [], "question": "How many are there?", "answer": "none"}]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return folder


def kept_bytes(folder: Path) -> int:
    """Return the bytes of the features in the cache of a test."""
    return sum(file.stat().st_size for file in (folder / "cache" / FOLDER).iterdir())
