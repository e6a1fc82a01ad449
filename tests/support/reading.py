"""Rows that the demo's base model answers by itself: rendered words and numbers, with answers of all lengths."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

from vlm_lora.demo.reading import held_out_scenes
from vlm_lora.demo.scenes import draw_scene

BASE = Path(__file__).parents[2] / "vlm_lora" / "demo" / "base"


def write_reading_rows(folder: Path, *, rows: int, validation: int, **more: Any) -> Path:
    """Write train.jsonl and validation.jsonl with their images; `more` goes into each row."""
    folder.mkdir(parents=True)
    for split, count, seed in (("train", rows, 1), ("validation", validation, 2)):
        lines = []
        for number, scene in enumerate(held_out_scenes(samples=count, seed=seed, layout=None)):
            exchange = scene.exchanges[0]
            name = f"{split}-{number}.png"
            draw_scene(scene).save(folder / name)
            lines.append({"image": name, "question": exchange.question, "answer": exchange.answer, **more})
        text = "\n".join(json.dumps(line) for line in lines)
        (folder / f"{split}.jsonl").write_text(text + "\n", encoding="utf-8")
    return folder


def pack_into_tar(rows: Path, archive: Path) -> Path:
    """Pack a split's rows and images into a WebDataset tar, in order."""
    with tarfile.open(archive, "w") as tar:
        for number, line in enumerate(rows.read_text(encoding="utf-8").splitlines()):
            row = json.loads(line)
            text = rows.parent / f"{rows.stem}-{number}.json"
            text.write_text(json.dumps({"question": row["question"], "answer": row["answer"]}), encoding="utf-8")
            tar.add(rows.parent / row["image"], f"{number:04}.png")
            tar.add(text, f"{number:04}.json")
            text.unlink()
    return archive
