"""Training from tar shards through the command line, as users of that format type it."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.tars import write_chart_tar
from vlm_lora.cli import main

FLAGS = [
    "--use_cpu",
    "--dataloader_num_workers",
    "0",
    "--disable_tqdm",
    "--save_strategy",
    "no",
    "--logging_steps",
    "1",
]


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    return found


def write_shards(folder: Path) -> Path:
    """Seven rows in three tars to train on, three to validate on."""
    for shard, numbers in enumerate(([0, 1], [2, 3, 4], [5, 6])):
        write_chart_tar(folder / f"train-{shard:04d}.tar", numbers)
    write_chart_tar(folder / "eval-0000.tar", [7, 8, 9])
    return folder


@pytest.mark.parametrize("typed", ["{folder}/*.tar", "{folder}/{{train-{{0000..0002}},eval-0000}}.tar", "{folder}"])
def test_train_from_tars(typed: str, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards")
    words = [
        "train",
        "--model_name_or_path",
        str(model_folder("gemma3")),
        "--dataset_name",
        typed.format(folder=folder),
    ]
    words += ["--output_dir", str(tmp_path / "out"), "--num_train_epochs", "1", "--per_device_train_batch_size", "2"]
    assert main([*words, *FLAGS]) == 0
    found = results(tmp_path / "out")
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == 4, "seven rows in batches of two"
    assert found["eval_supervised_tokens"] > 0


def test_a_cut_tar_stops_the_run_before_training(
    model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_shards(tmp_path / "shards")
    tar = folder / "train-0001.tar"
    with tarfile.open(tar) as whole:
        inside = whole.getmember("000004.json").offset_data + 5
    tar.write_bytes(tar.read_bytes()[:inside])
    words = ["train", "--model_name_or_path", str(model_folder("gemma3")), "--dataset_name", f"{folder}/*.tar"]
    assert main([*words, "--output_dir", str(tmp_path / "out"), *FLAGS]) == 1
    said = capsys.readouterr().err
    assert str(tar) in said
    assert "cut off" in said
    assert "last whole sample is '000003' (2 of them)" in said
