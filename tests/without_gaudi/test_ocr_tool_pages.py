"""The OCR tool's own command lines on generated pages: shard, look, train, list checkpoints, without a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.datasets import encode_png
from support.tars import write_tar
from vlm_lora.cli.main import main

PAGES = 12
EMPTY = 5
QUIET = "--use_cpu --disable_tqdm --log_level error"


def page(number: int) -> list[tuple[str, bytes]]:
    """Return JSON and image of one page in the tool's schema; page 5 has no text."""
    from PIL import Image

    generator = np.random.default_rng(number)
    picture = Image.fromarray(generator.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    lines = [{"text": f"line {n} of {number}", "bbox": [2, 12 * n, 60, 12 * n + 10]} for n in range(1, 3)]
    if number == EMPTY:
        lines = []
    text = {"lines": lines, "text": "\n".join(str(line["text"]) for line in lines)}
    record = {"text": text, "image": {"width": 64, "height": 48}}
    return [(f"{number:05d}.json", json.dumps(record).encode()), (f"{number:05d}.PNG", encode_png(picture))]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training tars and one to evaluate on, cut by the tool's command."""
    folder = tmp_path_factory.mktemp("pages")
    for name, numbers in (("in", range(PAGES)), ("held", range(100, 104))):
        write_tar(folder / f"{name}.tar", [member for number in numbers for member in page(number)])
    sharding = "--img-exts png jpg jpeg --meta-ext json --shuffle --seed 17"
    train = f"shard --input {folder}/in.tar --out-dir {folder}/train --num-shards 2 {sharding}"
    evaluation = (
        f"shard --input {folder}/held.tar --out-dir {folder}/eval --samples-per-shard 4 --prefix eval {sharding}"
    )
    assert main(train.split()) == 0
    assert main(evaluation.split()) == 0
    assert len(list((folder / "train").glob("*.tar"))) == 2
    return folder


def test_train_on_tasks_from_shards(model_folder: Callable[[str], Path], shards: Path, tmp_path: Path) -> None:
    command = (
        f"train --model-name {model_folder('qwen2_5_vl')} --tar-pattern {shards}/train/train-{{000000..000001}}.tar "
        f"--eval-tar-pattern {shards}/eval/*.tar --tasks reading localized_reading --output-types text lines "
        f"--max-length 2048 --epochs 1 --batch-size 2 --grad-accum 1 --output-dir {tmp_path}/out --seed 42 "
        "--learning-rate 1e-4 --warmup-steps 1 --num-workers 1 --persistent-workers --prefetch-factor 2 "
        f"--val-samples-per-epoch 3 --save_steps 3 {QUIET}"
    )
    assert main(command.split()) == 0
    results = json.loads((tmp_path / "out" / "all_results.json").read_text(encoding="utf-8"))
    assert results["train_samples"] == PAGES
    assert results["eval_samples"] == 3
    report = json.loads((tmp_path / "out" / "data_report.json").read_text(encoding="utf-8"))
    assert report["splits"]["train"]["rows"] == PAGES
    assert report["bad"] == []


def test_list_checkpoints(
    model_folder: Callable[[str], Path], shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (
        f"train --model-name {model_folder('llava')} --tar-pattern {shards}/train/*.tar --no-eval --epochs 1 "
        f"--batch-size 1 --output-dir {tmp_path}/out --num-workers 0 --save_steps 5 {QUIET}"
    )
    assert main(command.split()) == 0
    capsys.readouterr()
    assert main(["train", "--list-checkpoints", str(tmp_path / "out")]) == 0
    listed = capsys.readouterr().out
    assert listed.index("checkpoint-5") < listed.index("checkpoint-10"), "by number, not by letters"


def test_dry_run_without_a_model(
    model_folder: Callable[[str], Path], shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That tool's own does nothing here where there is no GPU."""
    command = (
        f"train --model-name {model_folder('qwen2_5_vl')} --tar-pattern {shards}/train/*.tar --tasks reading "
        f"--output-types text --dry-run --dry-run-samples 10 --no-model --output-dir {tmp_path}/out {QUIET}"
    )
    assert main(command.split()) == 0
    printed = capsys.readouterr().out
    numbers = [number for number in range(PAGES) if f"line 1 of {number}\nline 2 of {number}" in printed]
    assert 8 <= len(numbers) <= 10, "ten pages, of which one may be the empty one"
    assert (tmp_path / "out" / "dry_run.html").is_file()
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
