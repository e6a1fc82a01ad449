"""Boxes that a model writes, in pixels again: in `ask`, in an evaluation's predictions, and drawn on the pages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer
from transformers.generation.utils import GenerationMixin

from support.datasets import encode_png, write_jsonl
from support.runs import run, script_flags
from vlm_lora.cli.main import main

SIZES = [(640, 480), (480, 640), (3000, 2000)]
MOST = 512 * 512
LABELS = ["cup", "a red bus"]


def boxes_in(size: tuple[int, int]) -> list[list[int]]:
    width, height = size
    return [[3, 5, 90, 71], [width // 3, height // 4, width - 20, height - 11]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("boxes")
    rows = []
    for number, size in enumerate(SIZES):
        (folder / f"{number}.png").write_bytes(encode_png(Image.new("RGB", size, "white")))
        rows.append({"image": f"{number}.png", "objects": {"bbox": boxes_in(size), "category": LABELS}})
    return write_jsonl(folder / "rows.jsonl", rows)


@pytest.fixture(params=[("qwen2_5_vl", MOST), ("qwen2_5_vl", MOST // 2), ("qwen2_vl", MOST)], ids=str)
def model(request: pytest.FixtureRequest, model_folder: Callable[[str], Path]) -> list[str]:
    name, most = request.param
    return ["--model_name_or_path", str(model_folder(name)), "--max_pixels", str(most)]


def previewed(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    assert main(["preview", *words, "--json", "--rows", "3"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def answers(rows: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Return the ids that training teaches to write, row by row."""
    return [[label for label in row["labels"] if label != -100] for row in rows]


def writes(monkeypatch: pytest.MonkeyPatch, *each: Sequence[int]) -> None:
    """Let models generate these ids, call by call."""
    following = iter(each)

    def generate(self: Any, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.cat([input_ids, torch.tensor([list(next(following))])], dim=1)

    monkeypatch.setattr(GenerationMixin, "generate", generate)


def off(records: Sequence[dict[str, Any]], size: tuple[int, int]) -> float:
    true = boxes_in(size)
    if len(records) != len(true):
        return float("inf")
    pairs = [
        (a, b) for record, box in zip(records, true, strict=True) for a, b in zip(record["bbox"], box, strict=True)
    ]
    return max(abs(a - b) for a, b in pairs)


def allowed(words: Sequence[str], size: tuple[int, int]) -> float:
    """Return a step of the coarser of the two grids in question: a thousandth, or a pixel after resizing."""
    most = int(words[words.index("--max_pixels") + 1])
    shrunk = (size[0] * size[1] / most) ** 0.5
    return max(1.0, max(size) / 1000, shrunk * 1.1)


def test_ask_says_where_boxes_are_in_the_image_as_it_is_stored(
    model: list[str], data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading = [*model, "--dataset_name", str(data), "--validation_fraction", "0", "--box_format", "xyxy"]
    rows = previewed(reading, capsys)
    for number, (size, ids) in enumerate(zip(SIZES, answers(rows), strict=True)):
        question = ["--image", str(data.with_name(f"{number}.png")), "--prompt", "Where?", "--use_cpu", "true"]
        found = {}
        for choice in ("auto", "pixels"):
            writes(monkeypatch, ids)
            assert main(["ask", *model, *question, "--box_coordinates", choice]) == 0
            lines = capsys.readouterr().out.splitlines()
            said = [line.partition(": ")[2] for line in lines if line.startswith("In pixels of the image")]
            found[choice] = json.loads(said[0]) if said else []
        assert [record["label"] for record in found["auto"]] == LABELS
        assert off(found["auto"], size) <= allowed(model, size)
        assert off(found["pixels"], size) > 10, "the control: another way to count"


def test_an_evaluation_writes_generated_and_expected_boxes_in_pixels(
    model: list[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading = [*model, "--dataset_name", str(data), "--validation_fraction", "0", "--box_format", "xyxy"]
    ids = answers(previewed(reading, capsys))
    writes(monkeypatch, ids[0], ids[1], ids[1])
    flags: dict[str, Any] = {
        "do_eval": True,
        "validation_name": data,
        "max_pixels": model[-1],
        "box_format": "xyxy",
        "predict_with_generate": True,
        "per_device_eval_batch_size": 1,
    }
    results = run(Path(model[1]), data, tmp_path / "out", **flags)
    lines = (tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    for record, size in zip(records, SIZES, strict=True):
        assert off(record["expected_boxes"], size) <= allowed(model, size)
    assert [
        off(record["boxes"], size) <= allowed(model, size) for record, size in zip(records, SIZES, strict=True)
    ] == [
        True,
        True,
        False,
    ], "the third answer is that of another image: far off"
    assert off(records[2]["boxes"], SIZES[2]) > 10
    assert [record["exact"] for record in records] == [True, True, False]
    assert results["eval_exact_match"] == pytest.approx(2 / 3)


RECTANGLE = re.compile(r'<rect class="(\w+)" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)">')


def drawn(page: str, kind: str) -> list[list[dict[str, Any]]]:
    """Return the boxes that are drawn on each image, in pixels of the view box, which is the image's size."""
    found = []
    for figure in re.findall(r"<figure>.*?</figure>", page, re.DOTALL):
        shapes = [[float(n) for n in m.groups()[1:]] for m in RECTANGLE.finditer(figure) if m[1] == kind]
        found.append([{"bbox": [x, y, x + w, y + h]} for x, y, w, h in shapes])
    return found


def test_pages_draw_boxes_where_they_are(
    model: list[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading = [*model, "--dataset_name", str(data), "--validation_fraction", "0", "--box_format", "xyxy"]
    ids = answers(previewed([*reading, "--html", str(tmp_path / "page.html")], capsys))
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for number, size in enumerate(SIZES):
        assert f'viewBox="0 0 {size[0]} {size[1]}"' in page
        assert off(drawn(page, "expected")[number], size) <= allowed(model, size)
        assert off(drawn(page, "expected")[number - 1], size) > 10, "the control: those of another image"
    assert drawn(page, "generated") == [[], [], []]
    writes(monkeypatch, ids[0], ids[1])
    words = script_flags(Path(model[1]), data, tmp_path / "out", validation_fraction=0, max_pixels=model[-1])
    words += ["--box_format", "xyxy", "--dry_run", "--dry_run_samples", "2", "--dry_run_generate"]
    assert main(["train", *words]) == 0
    shown = (tmp_path / "out" / "dry_run.html").read_text(encoding="utf-8")
    for number, size in enumerate(SIZES[:2]):
        assert off(drawn(shown, "generated")[number], size) <= allowed(model, size)


def test_a_model_is_asked_as_it_was_trained(
    model_folder: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags: dict[str, Any] = {
        "do_train": True,
        "max_steps": 1,
        "validation_fraction": 0,
        "box_format": "xyxy",
        "box_coordinates": "pixels",
        "save_strategy": "steps",
        "save_steps": 1,
    }
    out = tmp_path / "out"
    run(model_folder("qwen2_5_vl"), data, out, **flags)
    capsys.readouterr()
    written = json.dumps([{"bbox_2d": box, "label": "cup"} for box in boxes_in(SIZES[0])])
    reading = ["--dataset_name", str(data), "--validation_fraction", "0", "--box_format", "xyxy"]
    for folder in (out, out / "checkpoint-1"):
        rows = previewed(["--model_name_or_path", str(folder), *reading], capsys)
        assert json.dumps(boxes_in(SIZES[0])[0]) in rows[0]["text"]
        # A folder of a run that did not know the setting is one that counted pixels.
        record = folder / ("run_config.yaml" if folder == out else "run.json")
        text = record.read_text(encoding="utf-8")
        record.write_text(re.sub(r'(?m)^ *"?box_coordinates"?: .*\n', "", text), encoding="utf-8")
        assert "box_coordinates" not in record.read_text(encoding="utf-8")
        (folder / "MANIFEST.json").unlink()  # which such a version did not write either
        rows = previewed(["--model_name_or_path", str(folder), *reading], capsys)
        assert json.dumps(boxes_in(SIZES[0])[0]) in rows[0]["text"]
    words = ["--model_name_or_path", str(out), "--image", str(data.with_name("0.png")), "--prompt", "Where?"]
    base = model_folder("qwen2_5_vl")
    ids = AutoTokenizer.from_pretrained(base)(written)["input_ids"]
    for choice, near in (("auto", True), ("per_mille", False)):
        writes(monkeypatch, ids)
        assert main(["ask", *words, "--use_cpu", "true", "--box_coordinates", choice]) == 0
        captured = capsys.readouterr()
        said = next(line for line in captured.out.splitlines() if line.startswith("In pixels"))
        assert (off(json.loads(said.partition(": ")[2]), SIZES[0]) <= 1) is near
        assert ("was trained with pixels" in captured.err) is not near
    rows = previewed(["--model_name_or_path", str(base), *reading], capsys)
    assert json.dumps(boxes_in(SIZES[0])[0]) not in rows[0]["text"], "the control: the base counts as its makers do"
