"""Boxes of OCR pages, in questions and answers, are written as the model counts: the same way as those of objects."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support.datasets import encode_png, write_jsonl
from support.mask_cases import new_encoder
from vlm_lora.batching.boxes.conventions import CONVENTIONS, OWN_CHOICE, PIXELS, BoxConvention
from vlm_lora.batching.boxes.writing import read_places
from vlm_lora.batching.encoded import EncodedRow
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.dataset import load_splits
from vlm_lora.data.ocr.tasks import COLUMNS

SIZE = (640, 480)
LINES = [{"text": "Dear Ann,", "bbox": [64, 48, 320, 96]}, {"text": "thanks.", "bbox": [64, 240, 600, 300]}]


def encoded(folder: Path, task: tuple[str, str, str], family: str, convention: BoxConvention) -> EncodedRow:
    (folder / "a.png").write_bytes(encode_png(Image.new("RGB", SIZE, "white")))
    with (folder / "tasks.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([COLUMNS, ("t", *task)])
    path = write_jsonl(folder / "rows.jsonl", [{"image": "a.png", "text": {"lines": LINES}}])
    config = DataConfig(dataset_name=str(path), validation_fraction=0.0, task_file=str(folder / "tasks.csv"))
    train = load_splits(config, need_train=True, need_validation=False).train
    assert train is not None
    return new_encoder(family, boxes=convention, load_image=None).encode(train[0])


@pytest.mark.parametrize(
    ("family", "convention"),
    [("qwen2_5_vl", CONVENTIONS["qwen2_5_vl"]), ("qwen2_5_vl", OWN_CHOICE), ("paligemma", CONVENTIONS["paligemma"])],
)
def test_answers_come_back(family: str, convention: BoxConvention, tmp_path: Path) -> None:
    row = encoded(tmp_path, ("image", "[lines, box]", "Read {image} with boxes."), family, convention)
    assert row.answer is not None
    found = read_places(row.answer, row.seen, convention)
    assert [region.label for region in found] == [line["text"] for line in LINES]
    # Of the tiny processor's 64 x 64 pixels one is ten of the image's.
    fed = row.seen[0].fed
    allowed = 1.0 if fed is None else max(stored / side for stored, side in zip(SIZE, fed, strict=True))
    for region, line in zip(found, LINES, strict=True):
        assert max(abs(a - b) for a, b in zip(region.numbers, line["bbox"], strict=True)) <= allowed
    control = read_places(row.answer, row.seen, PIXELS)
    assert not control or abs(control[0].numbers[0] - 64) > 10


def test_a_box_in_a_question_is_converted_like_an_answer(tmp_path: Path) -> None:
    task = ("[box, image]", "lines", "What stands at {box} of {image}?")
    asked: dict[str, Any] = {}
    for name, convention in (("pixels", PIXELS), ("per_mille", OWN_CHOICE)):
        row = encoded(tmp_path, task, "qwen2_5_vl", convention)
        found = re.search(r"What stands at (\[.*?\])", row.text)
        assert found is not None
        asked[name] = json.loads(found[1])
        assert row.answer is None, "the answer has no box"
        (region,) = row.regions
        assert max(abs(a - b) for a, b in zip(region.numbers, asked["pixels"], strict=True)) <= 1
    assert asked["pixels"] in [line["bbox"] for line in LINES]
    scaled = [round(n * 1000 / SIZE[place % 2]) for place, n in enumerate(asked["pixels"])]
    assert asked["per_mille"] == scaled != asked["pixels"]
    written = encoded(tmp_path, task, "paligemma", CONVENTIONS["paligemma"]).text
    assert re.search(r"What stands at (<loc\d{4}>){4} of", written)


def test_no_boxes_are_an_empty_list_or_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode_png(Image.new("RGB", SIZE, "white")))
    rows = [
        {"image": "a.png", "objects": {"bbox": boxes, "category": ["x"] * len(boxes)}} for boxes in ([[1, 2, 3, 4]], [])
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    config = DataConfig(dataset_name=str(path), validation_fraction=0.0)
    train = load_splits(config, need_train=True, need_validation=False).train
    assert train is not None
    for family, convention, empty in (
        ("qwen2_5_vl", CONVENTIONS["qwen2_5_vl"], "[]"),
        ("internvl", CONVENTIONS["internvl"], ""),
    ):
        row = new_encoder(family, boxes=convention, load_image=None).encode(train[1])
        assert row.answer == empty
        assert read_places(empty, row.seen, convention) == ()
