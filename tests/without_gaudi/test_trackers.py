"""Trackers of --report_to: scores of the end and sample answers with their images; what cannot be sent ends no run."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from support.datasets import write_chartqa_folder
from support.runs import results_of, run
from vlm_lora.report import trackers

FLAGS = {"do_train": True, "do_eval": True, "max_steps": 1, "predict_with_generate": True, "max_new_tokens": 4}


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


@pytest.mark.parametrize("images", [True, False])
def test_tensorboard_gets_scores_and_samples(
    images: bool, model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = write_chartqa_folder(tmp_path / "charts", train=2, val=2, test=0, seed=1), tmp_path / "out"
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    run(model_folder("gemma3"), data, out, **FLAGS, report_to="tensorboard", report_images=images)
    scalars = events(tmp_path / "events")
    assert scalars.Scalars("eval/exact_match")[-1].value == pytest.approx(results_of(out)["eval_exact_match"])
    samples = events(tmp_path / "events" / "samples")
    shown = samples.Tags()["images"]
    assert shown == (["samples/0", "samples/1"] if images else [])
    texts = [samples.Tensors(f"samples/{number}/text_summary")[0] for number in range(2)]
    said = texts[0].tensor_proto.string_val[0].decode()
    assert "row: " in said
    assert "expected: " in said
    assert "scores: exact_match " in said
    assert texts[0].step == 1
    if images:
        with Image.open(io.BytesIO(samples.Images("samples/0")[0].encoded_image_string)) as image:
            assert image.size == (96, 64)


def test_what_cannot_be_sent_ends_no_run(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no room")

    data = write_chartqa_folder(tmp_path / "charts", train=2, val=2, test=0, seed=1)
    monkeypatch.setattr(trackers, "SENDERS", {"tensorboard": full})
    run(model_folder("gemma3"), data, tmp_path / "out", **FLAGS, report_to="tensorboard", log_level="warning")
    assert "--report_to tensorboard: samples were not sent (OSError: no room)." in capsys.readouterr().err
