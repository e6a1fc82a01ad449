"""Small data folders for tests, shaped as the Hub and common tools store them. Every image is different."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 70, 210), "orange": (240, 150, 20)}
"""Bar colours, far apart from each other."""

_CHARTQA_FEATURES = {
    "image": {"_type": "Image"},
    "query": {"dtype": "string", "_type": "Value"},
    "label": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "Sequence"},
    "human_or_machine": {"names": ["human", "machine"], "_type": "ClassLabel"},
}


def draw_chart(seed: int, size: tuple[int, int] = (96, 64)) -> tuple[Image.Image, str, str]:
    """Draw a bar chart that no other seed draws; return it with a question and its right answer."""
    rng = np.random.default_rng(seed)
    width, height = size
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    names = list(COLOURS)
    heights = rng.permutation(np.arange(1, len(names) + 1)) * (height - 8) // (len(names) + 1)
    step = width // len(names)
    for place, (name, bar) in enumerate(zip(names, heights, strict=True)):
        left = place * step + 4
        pen.rectangle((left, height - 4 - int(bar), left + step - 8, height - 4), fill=COLOURS[name])
    # The seed's bits as dots along the top edge: charts with equal bars still differ.
    for bit in range(24):
        if seed >> bit & 1:
            picture.putpixel((2 + bit * 3, 1), (0, 0, 0))
    tallest = names[int(np.argmax(heights))]
    return picture, "Which colour is the tallest bar?", tallest


def encode_png(picture: Image.Image) -> bytes:
    """Return an image as a PNG file's bytes."""
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def chartqa_rows(count: int, *, seed: int, size: tuple[int, int] = (96, 64)) -> list[dict[str, Any]]:
    """Return ChartQA rows as the Hub stores them: image struct, query, label (a list of one)."""
    rows = []
    for number in range(count):
        picture, query, answer = draw_chart(seed + number, size)
        rows.append(
            {
                "image": {"bytes": encode_png(picture), "path": None},
                "query": query,
                "label": [answer],
                "human_or_machine": number % 2,
            }
        )
    return rows


def write_chartqa_folder(
    folder: Path, *, train: int, val: int, test: int, seed: int, size: tuple[int, int] = (96, 64)
) -> Path:
    """Write a ChartQA-shaped folder as the Hub stores it: data/{train,val,test}-00000-of-00001.parquet.

    Columns image, query, label (a list of one), human_or_machine, with Hugging Face features in the schema.
    Splits with 0 rows are left out. Returns the folder, to be used as `dataset_name`.
    """
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for split, (count, first) in _chartqa_splits(train, val, test, seed).items():
        table = pa.Table.from_pylist(chartqa_rows(count, seed=first, size=size), schema=_chartqa_schema())
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def save_chartqa_to_disk(
    folder: Path, *, train: int, val: int, test: int, seed: int, size: tuple[int, int] = (96, 64)
) -> Path:
    """Write the same rows with `DatasetDict.save_to_disk`; returns the folder."""
    import datasets

    splits = {
        split: datasets.Dataset(
            pa.Table.from_pylist(chartqa_rows(count, seed=first, size=size), schema=_chartqa_schema())
        )
        for split, (count, first) in _chartqa_splits(train, val, test, seed).items()
    }
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return folder


def _chartqa_splits(train: int, val: int, test: int, seed: int) -> dict[str, tuple[int, int]]:
    """Return rows and first seed by split; the splits share no image."""
    base = seed * 100_000
    sizes = {"train": (train, base), "val": (val, base + 40_000), "test": (test, base + 70_000)}
    return {split: (count, first) for split, (count, first) in sizes.items() if count}


def _chartqa_schema() -> pa.Schema:
    fields = [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("query", pa.string()),
        ("label", pa.list_(pa.string())),
        ("human_or_machine", pa.int64()),
    ]
    features = json.dumps({"info": {"features": _CHARTQA_FEATURES}})
    return pa.schema(fields, metadata={"huggingface": features})


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as JSON Lines, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_image(path: Path, *, seed: int, size: tuple[int, int] = (32, 24)) -> Path:
    """Write one chart as the format that the file's suffix names, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_chart(seed, size)[0].save(path)
    return path
