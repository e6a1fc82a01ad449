"""Training from tar shards through the command line, as users of that format type it."""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.runs import logged, results_of, run, run_processes, script_flags
from support.tars import write_chart_tar
from vlm_lora.cli.main import main

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
    found = results_of(tmp_path / "out")
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


def test_two_processes_take_the_steps_and_samples_of_one(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Tars of 2, 3 and 2 samples; two processes also index them at the same time."""
    flags = {"do_train": True, "num_train_epochs": 1, "validation_fraction": 0}
    folder = write_shards(tmp_path / "shards")
    launch = [
        str(Path(sys.executable).with_name("vlm-lora")),
        "launch",
        "--backend",
        "cpu",
        "--world_size",
        "2",
        "train",
    ]
    more = {"do_eval": False, "per_device_train_batch_size": 2, "ddp_backend": "gloo"}
    words = script_flags(model_folder("gemma3"), folder, tmp_path / "two", **flags, **more)
    run_processes([*launch, *words])
    one = tmp_path / "one"
    run(model_folder("gemma3"), folder, one, **flags, per_device_train_batch_size=4)
    assert len(logged(one, "grad_norm")) == 2, "seven rows in global batches of four"
    for key in ("loss", "grad_norm"):
        assert logged(tmp_path / "two", key) == pytest.approx(logged(one, key), rel=1e-4)
    run(model_folder("gemma3"), folder, tmp_path / "other", **flags, per_device_train_batch_size=4, seed=7)
    assert logged(tmp_path / "other", "loss") != pytest.approx(logged(one, "loss"), rel=1e-4), "another order"


def test_a_resumed_run_is_the_run_that_was_never_stopped(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Stopped after two of four steps: the rest of the epoch's samples, bit for bit."""
    flags: dict[str, Any] = {
        "do_train": True,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "validation_fraction": 0,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    folder = write_shards(tmp_path / "shards")
    run(model_folder("gemma3"), folder, tmp_path / "whole", **flags)
    weights = "adapter_model.safetensors"
    for name, changes in (("resumed", {}), ("control", {"seed": 7, "allow_changed": "seed"})):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        shutil.rmtree(tmp_path / name / "checkpoint-4")
        (tmp_path / name / weights).unlink()
        run(model_folder("gemma3"), folder, tmp_path / name, **flags, **changes, resume_from_checkpoint="true")
    whole = (tmp_path / "whole" / weights).read_bytes()
    assert (tmp_path / "resumed" / weights).read_bytes() == whole
    assert (tmp_path / "control" / weights).read_bytes() != whole
