"""Boxes of OCR pages, in questions and answers, are written as the model counts: the same way as those of objects."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from support.datasets import encode_png, write_jsonl
from support.mask_cases import new_encoder
from vlm_lora.batching.boxes.conventions import CONVENTIONS, OWN_CHOICE, PIXELS, BoxConvention, convention_for, explain
from vlm_lora.batching.boxes.writing import read_places
from vlm_lora.batching.encoded import EncodedRow
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.dataset import load_splits
from vlm_lora.data.ocr.tasks import COLUMNS
from vlm_lora.errors import DataError
from vlm_lora.session import say_boxes

SIZE = (640, 480)
LINES: list[dict[str, Any]] = [
    {"text": "Dear Ann,", "bbox": [64, 48, 320, 96]},
    {"text": "thanks.", "bbox": [64, 240, 600, 300]},
]


def encoded(
    folder: Path, task: tuple[str, str, str], family: str, convention: BoxConvention, **settings: Any
) -> EncodedRow:
    (folder / "a.png").write_bytes(encode_png(Image.new("RGB", SIZE, "white")))
    with (folder / "tasks.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([COLUMNS, ("t", *task)])
    path = write_jsonl(folder / "rows.jsonl", [{"image": "a.png", "text": {"lines": LINES}}])
    tasks = str(folder / "tasks.csv")
    settings = {"answer_style": "bbox_2d", **settings}
    config = DataConfig(dataset_name=str(path), validation_fraction=0.0, task_file=tasks, **settings)
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


def test_a_task_says_how_to_answer_as_the_model_counts(tmp_path: Path) -> None:
    task = ("image", "[lines, box]", "Read {image}. {box_format}")
    said = {
        "pixels": ("qwen2_5_vl", PIXELS, '{"bbox_2d": [x1, y1, x2, y2], "text": "..."}, in pixels.'),
        "per_mille": (
            "qwen2_5_vl",
            OWN_CHOICE,
            '"text": "..."}, from 0 to 1000 along the picture\'s width and height.',
        ),
        "bins": ("paligemma", CONVENTIONS["paligemma"], "Answer with the text and the box of each."),
    }
    for family, convention, words in said.values():
        text = encoded(tmp_path, task, family, convention).text
        assert words in text
        assert ("in pixels" in text) is (convention is PIXELS)
    with pytest.raises(DataError, match=r"has {box_format} although its output_type asks for no box"):
        encoded(tmp_path, ("image", "lines", "Read {image}. {box_format}"), "qwen2_5_vl", PIXELS)


PER_MILLE = "from 0 to 1000 along the picture's width and height."


@pytest.mark.parametrize(
    ("family", "convention"), [("qwen2_5_vl", OWN_CHOICE), ("paligemma", CONVENTIONS["paligemma"])]
)
@pytest.mark.parametrize(
    ("output", "form", "answer"),
    [
        ("box", "[x1, y1, x2, y2]", [line["bbox"] for line in LINES]),
        ("[lines, box]", '{"text": "...", "bbox": [x1, y1, x2, y2]}', LINES),
    ],
)
def test_the_tools_own_style_is_asked_for_as_it_is_answered(
    family: str, convention: BoxConvention, output: str, form: str, answer: Any, tmp_path: Path
) -> None:
    task = ("image", output, "Read {image}. {box_format}")
    row = encoded(tmp_path, task, family, convention, answer_style="bbox")
    assert f"Answer with a JSON list of {form}, in pixels." in row.text, "whatever the model's own way"
    assert "1000" not in row.text
    assert json.dumps(answer) in row.text
    placed = encoded(tmp_path, task, family, convention, answer_style="bbox", box_coordinates="per_mille")
    said = f"Answer with a JSON list of {form}, {PER_MILLE}" if family != "paligemma" else "the box of each."
    assert said in placed.text
    assert "in pixels" not in placed.text
    assert json.dumps(answer) not in placed.text
    ours = encoded(tmp_path, task, family, OWN_CHOICE).text
    assert '{"bbox_2d": [x1, y1, x2, y2]' in ours, "the control"
    assert PER_MILLE in ours


@pytest.mark.parametrize(
    ("settings", "coordinates", "warned"),
    [
        ({}, "auto", False),
        ({"box_prompt": "Where? In pixels."}, "per_mille", True),
        ({"box_prompt": "Where? In pixels."}, "pixels", False),
        ({"box_prompt": "Where?"}, "per_mille", False),
    ],
)
def test_the_way_is_said_and_a_set_question_that_says_another_is_warned_of(
    settings: dict[str, Any], coordinates: str, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.png").write_bytes(encode_png(Image.new("RGB", SIZE, "white")))
    path = write_jsonl(
        tmp_path / "rows.jsonl", [{"image": "a.png", "objects": {"bbox": [[1, 2, 3, 4]], "label": ["x"]}}]
    )
    config = DataConfig(dataset_name=str(path), validation_fraction=0.0, **settings)
    data = load_splits(config, need_train=True, need_validation=False).train
    convention = convention_for("llava", coordinates)
    prepared: Any = SimpleNamespace(boxes=convention, config=SimpleNamespace(model_type="llava"))
    with caplog.at_level("INFO"):
        say_boxes(data, prepared)
    assert f"Boxes: {convention.text}" in caplog.text
    assert ("our choice, no documented way of llava's makers is known" in caplog.text) is (coordinates == "auto")
    assert ("says pixels, and boxes are counted as 0 to 1000" in caplog.text) is warned


def test_each_row_of_the_table_has_its_source() -> None:
    assert all(convention.source for convention in CONVENTIONS.values())
    for name, convention in CONVENTIONS.items():
        assert convention_for(name, "auto") is convention
        assert convention_for(name, "pixels") is PIXELS
        assert convention.source in explain(convention, name)
    assert convention_for("some_other", "auto") is OWN_CHOICE


def test_the_documentation_names_each_source() -> None:
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    table = page.partition("### How boxes are counted")[2].partition("\n- ")[0]
    for convention in CONVENTIONS.values():
        issues = re.findall(r"\d{3,4}", convention.source.partition("issues")[2])
        named = issues or [word for word in ("zai-org", "ms-swift", "big_vision") if word in convention.source]
        assert named
        assert all(name in table for name in named)
