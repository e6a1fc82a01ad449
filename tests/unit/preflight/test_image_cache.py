"""`--image_cache`: on where it pays and fits, off with the reason, and nothing prepared that is there already."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support.datasets import write_image, write_jsonl
from support.runs import run
from vlm_lora.cli.main import main
from vlm_lora.data.images import loader

ROWS = 40
QUESTIONS = ("What?", "Which?")
PIXELS = 32 * 32 * 3
"""Bytes of an image as tiny Gemma 3 sees it, as levels."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Forty rows: two questions about each of twenty images."""
    folder = tmp_path / "data"
    for image in range(ROWS // 2):
        write_image(folder / f"{image}.png", seed=image, size=(48, 40))
    rows = [
        {"image": f"{row // 2}.png", "question": QUESTIONS[row % 2], "answer": f"this {row}"} for row in range(ROWS)
    ]
    write_jsonl(folder / "train.jsonl", rows)
    return folder


class Checks:
    """Runs `check` on the data and counts what it decodes."""

    def __init__(self, data: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.data, self.model, self.capsys = data, model, capsys
        self.decoded: list[str] = []

    def __call__(self, *words: str, model: Path | None = None) -> dict[str, Any]:
        """Return what was found, but for names and times; the log is in `log`."""
        self.decoded.clear()
        flags = ["--model_name_or_path", str(model or self.model), "--dataset_name", str(self.data), "--use_cpu"]
        main(
            [
                "check",
                *flags,
                "--do_eval",
                "false",
                "--validation_fraction",
                "0",
                "--json",
                "--log_level",
                "info",
                *words,
            ]
        )
        out, self.log = self.capsys.readouterr()
        report: dict[str, Any] = json.loads(out[max(0, out.find("{")) :])
        return report


@pytest.fixture
def check(
    data: Path,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Checks:
    checks = Checks(data, model_folder("gemma3"), capsys)
    load = loader.load_image

    def counted(source: Any, **given: Any) -> Image.Image:
        checks.decoded.append(str(source))
        return load(source, **given)

    monkeypatch.setattr(loader, "load_image", counted)
    monkeypatch.setenv("VLM_LORA_CACHE", str(tmp_path / "cache"))
    return checks


def forget_check(tmp_path: Path) -> None:
    """Remove the kept row tables, so that rows are read again."""
    for table in (tmp_path / "cache" / "checks").iterdir():
        table.unlink()


def kept_bytes(tmp_path: Path) -> int:
    folder = tmp_path / "cache" / "prepared_images"
    return sum(file.stat().st_size for file in folder.iterdir()) if folder.is_dir() else 0


def announced(check: Checks) -> float:
    """Return the bytes that were said to be needed."""
    ((number, unit),) = re.findall(r"Image cache: on, about ([\d.]+) (kB|MB) in", check.log)
    return float(number) * {"kB": 1e3, "MB": 1e6}[unit]


def test_each_image_is_decoded_once_for_all_its_questions_and_checks(check: Checks, tmp_path: Path) -> None:
    plain = check("--image_cache", "off")
    assert len(check.decoded) == ROWS
    assert kept_bytes(tmp_path) == 0
    forget_check(tmp_path)

    first = check()
    assert announced(check) == pytest.approx(kept_bytes(tmp_path), rel=0.05)  # not twice as much for two questions
    assert len(check.decoded) == ROWS // 2
    assert ROWS // 2 * PIXELS < kept_bytes(tmp_path) < ROWS // 2 * PIXELS + ROWS * 4096
    forget_check(tmp_path)

    second = check()
    assert check.decoded == []
    assert announced(check) == pytest.approx(kept_bytes(tmp_path), rel=0.05)
    assert plain == first == second


def test_images_of_many_sizes_are_announced_as_they_are(
    check: Checks, data: Path, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    for image in range(ROWS // 2):
        write_image(data / f"{image}.png", seed=image, size=(48 + 28 * (image // 3), 40 + 9 * image))
    check(model=model_folder("qwen2_5_vl"))
    assert announced(check) == pytest.approx(kept_bytes(tmp_path), rel=0.05)


def test_damaged_entries_are_said_in_one_line_and_made_again(check: Checks, tmp_path: Path) -> None:
    plain = check()
    assert "damaged entr" not in check.log
    for segment in (tmp_path / "cache" / "prepared_images").glob("*.tensors"):
        segment.write_bytes(bytes(segment.stat().st_size))
    forget_check(tmp_path)
    assert check() == plain
    (count,) = re.findall(r"prepared_images: (\d+) damaged entries \(", check.log)
    assert int(count) >= ROWS // 2
    assert check.log.count("damaged entr") == 1
    forget_check(tmp_path)
    assert check() == plain
    assert "damaged entr" not in check.log


def test_what_an_image_is_made_by_is_part_of_its_name(check: Checks, data: Path, tmp_path: Path) -> None:
    check()
    held = kept_bytes(tmp_path)
    check("--image_backend", "pil")
    assert kept_bytes(tmp_path) > held + ROWS // 2 * PIXELS
    assert check.decoded != []

    check()
    write_image(data / "3.png", seed=99, size=(48, 40))
    check()
    assert check.decoded == [str(data / "3.png")]  # of an image whose name alone stayed
    os.utime(data / "4.png", (1, 1))
    check()
    assert check.decoded == []  # of one whose bytes stayed


def test_where_too_little_may_be_kept_it_is_off_and_says_so(check: Checks, tmp_path: Path) -> None:
    report = check("--image_cache_gb", "0.00003")
    (needed,) = re.findall(r"Image cache: off: about ([\d.]+) kB would be needed in", check.log)
    assert ROWS // 2 * PIXELS / 1000 < float(needed) < 2 * ROWS * PIXELS / 1000
    assert "30 kB are allowed (--image_cache_gb 3e-05, and" in check.log
    assert "--image_cache on keeps as many images as fit" in check.log
    forget_check(tmp_path)

    assert check("--image_cache_gb", "0.00003", "--image_cache", "on") == report
    assert "Image cache: on, for as many images as fit: about" in check.log
    assert 0 < kept_bytes(tmp_path) <= 30_000 + PIXELS


def test_rows_of_the_same_image_take_the_room_of_one(check: Checks) -> None:
    check("--image_cache_gb", "0.00018")  # between what 20 and 40 images take
    assert "Image cache: on, about" in check.log


def test_text_alone_is_a_line(check: Checks, data: Path, tmp_path: Path) -> None:
    write_jsonl(data / "train.jsonl", [{"question": f"What is {row}?", "answer": "red"} for row in range(4)])
    check("--image_column", "no_pictures")
    assert check.log.count("Image cache: off, as no row has an image (--image_cache).") == 1
    assert kept_bytes(tmp_path) == 0
    refused(check, ["--image_column", "no_pictures", "--image_cache", "on"], "--image_cache on: no row has an image.")


def test_a_folder_that_cannot_be_written_is_said_once_or_refused(
    check: Checks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("VLM_LORA_CACHE", str(tmp_path / "taken"))
    reason = f"{tmp_path}/taken/prepared_images cannot be written (Not a directory). Set VLM_LORA_CACHE to"
    check()
    assert check.log.count(f"Image cache: off: {reason}") == 1
    assert check.log.count("prepared_images") == 1
    assert len(check.decoded) == ROWS
    refused(check, ["--image_cache", "on"], f"--image_cache on: {reason}")
    check("--image_cache", "off")
    assert "prepared_images" not in check.log


def test_a_file_may_write_it_as_yaml_reads_it(check: Checks, tmp_path: Path) -> None:
    settings = tmp_path / "run.yaml"
    for written, decoded in (("off", ROWS), ("on", ROWS // 2)):
        settings.write_text(f"image_cache: {written}\n", encoding="utf-8")
        check("--config", str(settings))
        assert len(check.decoded) == decoded
        forget_check(tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--image_cache", "on", "--image_cache_gb", "1e-9"], "kB or more, and 1 byte is allowed (--image_cache_gb"),
        (["--image_cache", "off", "--image_cache_gb", "5"], "--image_cache_gb 5 says how much may be kept, and"),
        (["--cache_vision_features", "off", "--vision_cache_gb", "5"], "--vision_cache_gb 5 says how much may be kept"),
        (["--image_cache", "maybe"], "image_cache maybe: must be one of auto, on, off"),
        (["--image_cache_gb", "0"], "--image_cache_gb 0.0: must be a finite number above 0"),
        (
            ["--image_cache", "on", "--streaming", "true", "--max_steps", "2"],
            "--image_cache on does not go with --streaming true",
        ),
    ],
    ids=["room for none", "a size of nothing", "a size of no features", "no such choice", "no room", "a stream"],
)
def test_what_cannot_be_is_refused(check: Checks, words: list[str], said: str) -> None:
    refused(check, words, said)


def refused(check: Checks, words: list[str], said: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        check(*words)
    out, err = check.capsys.readouterr()
    assert said in err + out + check.log


def test_training_is_the_same_bit_for_bit(
    data: Path, model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    load = loader.load_image

    def counted(source: Any, **given: Any) -> Image.Image:
        decoded.append(str(source))
        return load(source, **given)

    monkeypatch.setattr(loader, "load_image", counted)
    monkeypatch.setenv("VLM_LORA_CACHE", str(tmp_path / "cache"))
    weights = {}
    for cache in ("off", "on", "auto"):
        flags = {"do_train": True, "num_train_epochs": 2, "max_train_samples": 8, "validation_fraction": 0.0}
        decoded.clear()
        output = tmp_path / cache
        run(model_folder("gemma3"), data, output, **flags, image_cache=cache, learning_rate=1e-2, skip_check=True)
        weights[cache] = ((output / "adapter_model.safetensors").read_bytes(), len(decoded))
    assert weights["off"][0] == weights["on"][0] == weights["auto"][0]
    assert weights["off"][1] == 1 + 2 * 8
    assert weights["on"][1] == 4  # of eight rows' four images
    assert weights["auto"][1] == 0
    other = tmp_path / "other"  # the control: other images give other weights
    for image in range(4):
        write_image(data / f"{image}.png", seed=50 + image, size=(48, 40))
    run(model_folder("gemma3"), data, other, **flags, learning_rate=1e-2, skip_check=True)
    assert (other / "adapter_model.safetensors").read_bytes() != weights["off"][0]
