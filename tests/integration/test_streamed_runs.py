"""Whole runs from a stream: resumed bitwise, the same on two processes, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from support.datasets import write_chartqa_folder, write_jsonl
from support.runs import TORCHRUN, logged, run, run_processes, script_flags
from vlm_lora.cli.main import run_script
from vlm_lora.data.sources.streamed import StreamedConversations

FLAGS = {
    "do_train": True,
    "streaming": True,
    "shuffle_buffer": 4,
    "max_steps": 6,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "lora_dropout": 0.1,
}


@pytest.fixture(scope="module")
def charts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven rows to train on, so that six steps of two go into a second pass."""
    return write_chartqa_folder(tmp_path_factory.mktemp("charts"), train=7, val=2, test=0, seed=5)


def losses(model: Path, data: Path, output: Path, **flags: object) -> list[float]:
    run(model, data, output, **{**FLAGS, **flags})
    return logged(output, "loss")


def test_a_resumed_run_equals_the_whole_one(
    model_folder: Callable[[str], Path], charts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_folder("gemma3")
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = losses(model, charts, tmp_path / "whole", **saving)
    assert len(whole) == 6
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    resumed = losses(model, charts, tmp_path / "resumed", **saving, resume_from_checkpoint=checkpoint)
    assert resumed == whole
    weights = [tmp_path / name / "adapter_model.safetensors" for name in ("whole", "resumed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert losses(model, charts, tmp_path / "worker", dataloader_num_workers=1) == whole
    several = {"dataloader_num_workers": 2, "resume_from_checkpoint": checkpoint}
    assert losses(model, charts, tmp_path / "workers", **several) == whole
    # The controls: other seed, other rows; and a stream that began anew at the checkpoint would not be the same.
    assert losses(model, charts, tmp_path / "other", data_seed=7)[0] != whole[0]
    take = StreamedConversations.__getitem__
    monkeypatch.setattr(StreamedConversations, "__getitem__", lambda rows, index: take(rows, index - 4))
    stale = losses(model, charts, tmp_path / "stale", resume_from_checkpoint=checkpoint)
    assert stale[:2] == whole[:2]
    assert stale[2:] != whole[2:]


def test_two_processes_equal_one(model_folder: Callable[[str], Path], charts: Path, tmp_path: Path) -> None:
    model = model_folder("gemma3")
    flags = {**FLAGS, "lora_dropout": 0, "max_steps": 4}
    one = losses(model, charts, tmp_path / "one", **flags)
    two = {**flags, "per_device_train_batch_size": 1, "ddp_backend": "gloo"}
    run_processes([*TORCHRUN, *script_flags(model, charts, tmp_path / "two", **two)])
    assert logged(tmp_path / "two", "loss") == pytest.approx(one, rel=1e-4)
    other = losses(model, charts, tmp_path / "other", **flags, data_seed=7)
    assert other != pytest.approx(one, rel=1e-3), "other rows have other losses"


def test_a_run_says_what_it_checked_and_counts_its_rows(
    model_folder: Callable[[str], Path], charts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = {"do_eval": True, "validation_name": charts / "data" / "val-00000-of-00001.parquet"}
    flags = {**FLAGS, **measured, "max_steps": 2, "log_level": "info"}
    results = run(model_folder("gemma3"), charts, tmp_path / "out", **flags)
    assert results["train_samples"] == 4
    assert results["eval_samples"] == 2
    shown = capsys.readouterr().err
    assert "streaming: the first 7 rows were checked" in shown
    assert shown.count("Image cache: off, as a stream reads each image once (--image_cache).") == 1
    assert "Streaming: 2 steps of 2 rows, drawn from a buffer of 4 by seed 42." in shown
    report = json.loads((tmp_path / "out" / "data_report.json").read_text(encoding="utf-8"))
    assert report["splits"]["train"]["rows"] == 7


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"max_steps": -1}, "--streaming true needs --max_steps"),
        ({"static_shapes": True}, "--static_shapes false"),
        ({"on_overflow": "drop"}, "--on_overflow drop does not go with --streaming"),
        ({"do_eval": True}, "Type --validation_name with other data, or --do_eval false"),
    ],
)
def test_what_does_not_go_with_a_stream_is_refused(
    flags: dict[str, object],
    message: str,
    model_folder: Callable[[str], Path],
    charts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = script_flags(model_folder("gemma3"), charts, tmp_path / "out", **{**FLAGS, **flags})
    assert run_script(words) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_row_behind_the_checked_ones_stops_the_run(
    workers: int, model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": f"q{n}", "answer": "a" if n != 101 else None} for n in range(104)]
    data = write_jsonl(tmp_path / "train.jsonl", rows)
    flags = {**FLAGS, "shuffle_buffer": 1, "per_device_train_batch_size": 26, "dataloader_num_workers": workers}
    words = script_flags(model_folder("gemma3"), data, tmp_path / "out", **flags)
    assert run_script(words) != 0
    assert "train.jsonl row 101" in capsys.readouterr().err
