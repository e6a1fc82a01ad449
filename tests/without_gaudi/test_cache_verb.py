"""`vlm-lora cache`: the run afterwards makes no features and trains the weights of a run that made them itself."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.asked_twice import ADAPTER, FLAGS, kept_bytes, write_asked_twice
from support.runs import capture_trainer, run, script_flags
from vlm_lora.batching.prepared.store import TensorStore
from vlm_lora.cli.main import main
from vlm_lora.training.feeding.ahead import Progress
from vlm_lora.training.feeding.vision_features import FOLDER


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return a function that runs the verb with the flags of the trainings here, and a cache of this test's own."""
    monkeypatch.setenv("VLM_LORA_CACHE", str(tmp_path / "cache"))

    def cache(model: Path, data: Path, **changes: Any) -> int:
        return main(["cache", *script_flags(model, data, tmp_path / "out", **{**FLAGS, **changes})])

    return cache


def weights(output: Path) -> str:
    return hashlib.sha256((output / ADAPTER).read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["qwen2_5_vl", "mllama"])
def test_the_run_afterwards_makes_none(
    name: str,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    cached: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trainers = capture_trainer(monkeypatch)
    model, data = model_folder(name), write_asked_twice(tmp_path / "data")
    made = 5 if name == "mllama" else 4  # what fills up rows with fewer images than others
    assert cached(model, data) == 0
    said = capsys.readouterr().out
    assert f"11 rows with 11 images.\nVision features: {made} made, 6 there already." in said
    assert not (tmp_path / "out").exists()
    size = kept_bytes(tmp_path)
    assert cached(model, data) == 0
    assert f"Vision features: 0 made, {made + 6} there already." in capsys.readouterr().out
    run(model, data, tmp_path / "ahead", **FLAGS)
    assert trainers[-1].features.made == 0
    assert trainers[-1].features.read > 0
    assert kept_bytes(tmp_path) == size
    if name == "mllama":
        return
    run(model, data, tmp_path / "smaller", **FLAGS, min_pixels=3600)
    assert trainers[-1].features.made == 4, "another size is another key"
    shutil.rmtree(tmp_path / "cache")
    run(model, data, tmp_path / "on the fly", **FLAGS)
    assert trainers[-1].features.made == 4
    assert weights(tmp_path / "ahead") == weights(tmp_path / "on the fly")
    assert weights(tmp_path / "ahead") != weights(tmp_path / "smaller")


def test_it_goes_on_where_it_was_ended(
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    cached: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And the run afterwards keeps what fits, however little room is left: it does not make room for what is there."""
    trainers = capture_trainer(monkeypatch)
    model, data = model_folder("gemma3"), write_asked_twice(tmp_path / "data")
    put, calls = TensorStore.put, []

    def put_two(self: TensorStore, key: str, tensors: Any) -> bool:
        if self.folder.name == FOLDER:
            calls.append(key)
            if len(calls) == 3:
                raise KeyboardInterrupt
        return put(self, key, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(TensorStore, "put", put_two)
        assert cached(model, data) == 130
    capsys.readouterr()
    assert cached(model, data) == 0
    assert "Vision features: 2 made, 8 there already." in capsys.readouterr().out
    run(model, data, tmp_path / "ahead", **FLAGS, vision_cache_gb=1.2 * kept_bytes(tmp_path) / 1e9)
    assert trainers[-1].features.made == 0


REFUSED = [
    ({"cache_vision_features": "off", "image_cache": "off"}, "nothing can be kept, the lines above say why"),
    ({"streaming": True, "max_steps": 2}, "--streaming true: a stream's rows are not known"),
    ({"cache_vision_features": "on", "lora_targets": "language,vision"}, "the vision tower trains"),
    ({"deepspeed": "zero2"}, "--deepspeed: its engine prepares the model"),
    ({"dry_run": True}, "--dry_run is for train"),
]


@pytest.mark.parametrize(("flags", "reason"), REFUSED)
def test_what_cannot_be_kept_is_said(
    flags: dict[str, Any],
    reason: str,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    cached: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cached(model_folder("gemma3"), write_asked_twice(tmp_path / "data"), **flags) == 1
    assert reason in capsys.readouterr().err


def test_images_alone_where_the_tower_trains(
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    cached: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, data = model_folder("gemma3"), write_asked_twice(tmp_path / "data")
    assert cached(model, data, peft_method="none") == 0
    said = capsys.readouterr().out
    assert "prepared_images: 0 bytes before, " in said
    assert "vision_features: 0 bytes before, 0 bytes now." in said
    assert any((tmp_path / "cache" / "prepared_images").iterdir())


def test_one_of_several_processes_is_refused(
    tmp_path: Path, cached: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cached(tmp_path, tmp_path) == 1
    said = capsys.readouterr().err
    assert "vlm-lora cache is one process, and was started as one of 2: type vlm-lora cache with the same flags" in said


def test_a_launch_is_refused_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[Any] = []

    def start(launch: Any) -> int:
        started.append(launch)
        return 0

    monkeypatch.setattr("vlm_lora.cli.launch.run_launch", start)
    words = ["--dataset_name", "my data", "--model_name_or_path", "google/gemma-3-4b-it"]
    assert main(["launch", "--world_size", "2", "cache", *words]) == 1
    line = "vlm-lora cache --dataset_name 'my data' --model_name_or_path google/gemma-3-4b-it"
    assert f"cache is one process. Type, once on each machine: {line}. The processes" in capsys.readouterr().err
    assert not started
    assert main(["launch", "--world_size", "2", "check", *words]) == 0
    assert started, "the control"


def test_what_it_prepares_is_what_a_run_that_goes_on_reads(
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    cached: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the image backend of the checkpoint, which a new run would not take, and its choice of features."""
    trainers = capture_trainer(monkeypatch)
    model, data = model_folder("gemma3"), write_asked_twice(tmp_path / "data")
    saves = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2, "do_eval": False}
    again = {**saves, "resume_from_checkpoint": "true", "max_steps": 4}
    run(model, data, tmp_path / "out", **{**FLAGS, **saves}, image_backend="pil")
    shutil.rmtree(tmp_path / "cache")
    assert cached(model, data, **again) == 0
    run(model, data, tmp_path / "out", **{**FLAGS, **again})
    assert trainers[-1].features.made == 0
    assert cached(model, data, **saves) == 0
    assert "Vision features: 4 made" in capsys.readouterr().out, "the control: a new run takes torchvision"
    shutil.rmtree(tmp_path / "out")
    run(model, data, tmp_path / "out", **{**FLAGS, **saves}, cache_vision_features="off")
    assert cached(model, data, **again) == 0
    assert "Vision features" not in capsys.readouterr().out


def test_progress_says_rows_speed_and_what_is_left(caplog: pytest.LogCaptureFixture) -> None:
    seconds = iter([0.0, 2.0, 6.0, 8.0, 10.0])
    progress = Progress(100, clock=lambda: next(seconds))
    with caplog.at_level(logging.INFO, "vlm_lora.training.feeding.ahead"):
        for _ in range(4):
            progress.add(3)
    assert [record.getMessage() for record in caplog.records] == [
        "Cache: 2 of 100 rows, 1.0 images/s, 4 min 54 s left."
    ]
