"""A small data folder whose rows differ in everything that batching could get wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = ("red", "green", "blue", "small", "large", "square", "round", "bright", "dark", "striped")


def write_uneven_rows(folder: Path, *, rows: int, validation: int = 0) -> Path:
    """Write train.jsonl (and validation.jsonl): different images, questions and very different answer lengths."""
    folder.mkdir(parents=True)
    write_split(folder, "train", rows, seed=0)
    if validation:
        write_split(folder, "validation", validation, seed=1)
    return folder


def write_split(folder: Path, split: str, rows: int, *, seed: int) -> None:
    generator = np.random.default_rng(seed)
    lines = []
    for row in range(rows):
        name = f"{split}-{row}.png"
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / name)
        answer = " ".join(generator.choice(WORDS, size=1 + (row * row) % 9))
        lines.append({"image": name, "question": f"What is in picture {row}?", "answer": answer})
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / f"{split}.jsonl").write_text(text + "\n", encoding="utf-8")


def write_varied_rows(folder: Path, *, rows: int, validation: int = 0) -> Path:
    """As `write_uneven_rows`, but every image has a size of its own and questions differ in length."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for split, count in (("train", rows), ("validation", validation)):
        lines = []
        for row in range(count):
            width, height = (int(side) for side in generator.integers(28, 140, 2))
            name = f"{split}-{row}.png"
            Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)
            question, answer = (
                " ".join(generator.choice(WORDS, size=1 + int(generator.integers(0, most)))) for most in (25, 12)
            )
            lines.append({"image": name, "question": question, "answer": answer})
        if lines:
            text = "\n".join(json.dumps(line) for line in lines)
            (folder / f"{split}.jsonl").write_text(text + "\n", encoding="utf-8")
    return folder


def write_mixed_rows(folder: Path, *, steps: int) -> Path:
    """Rows for two processes of batch 1 in order: one has the images and the other none, later they take turns."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    lines = []
    for step in range(steps):
        taken_by = int(step >= steps // 2 and step % 2 == 1)
        for process in range(2):
            name = f"{step}.png" if process == taken_by else None
            if name:
                Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / name)
            lines.append({"image": name, "question": f"Which row is {step}?", "answer": WORDS[step % len(WORDS)]})
    text = "\n".join(json.dumps(line) for line in lines) + "\n"
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    (folder / "validation.jsonl").write_text("\n".join(text.splitlines()[:5]) + "\n", encoding="utf-8")
    return folder
