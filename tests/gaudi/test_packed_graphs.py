"""Packs of one shape on the simulated device: the updates of the rows unpacked, and a handful of graphs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from support.rows import write_mixed_rows, write_uneven_rows
from support.runs import logged, run
from support.stacks import OLD_ROAD, on_hpu, recorded

SETTINGS = {
    "do_train": True,
    "bf16": False,
    "per_device_train_batch_size": 1,
    "logging_steps": 1000,
    "validation_fraction": 0,
    "num_train_epochs": 2,
}
PACKED = {"packing": True, "pack_length": 400}


def test_two_epochs_of_packs_are_a_handful_of_graphs(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """One image a row; nothing is logged, which takes two more. The control: rows of any length, unpacked."""
    data = write_uneven_rows(tmp_path / "data", rows=60)
    words = on_hpu(model_folder("gemma3"), data, tmp_path / "out", **SETTINGS, **PACKED)
    free = on_hpu(model_folder("gemma3"), data, tmp_path / "free", **SETTINGS, static_shapes=False, max_steps=20)
    packed, loose = (
        recorded(tmp_path / each, [flags], python=OLD_ROAD.python, variables=OLD_ROAD.variables)[0][0]
        for each, flags in (("packed", words), ("loose", free))
    )
    steps = packed["steps"]
    half = len(steps) // 2
    assert steps[-1]["cut"] <= 6
    assert steps[-1]["cut"] == steps[half - 1]["cut"], "the second epoch compiles nothing"
    assert steps[half - 1]["cut"] > 0
    assert loose["steps"][-1]["cut"] > 6
    assert [step["reads"] for step in steps[1:]] == [steps[1]["reads"]] * (len(steps) - 1), "no step reads anything"
    assert packed["end"]["reads"] > steps[-1]["reads"], "the counter sees what the end reads"


def test_packs_of_rows_with_and_without_images_compile_nothing_in_the_second_epoch(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """One planned shape, blank images where some are missing."""
    data = write_mixed_rows(tmp_path / "data", steps=24)
    words = on_hpu(model_folder("gemma3"), data, tmp_path / "out", **SETTINGS, **PACKED)
    packed = recorded(tmp_path / "packed", [words], python=OLD_ROAD.python, variables=OLD_ROAD.variables)[0][0]
    steps = packed["steps"]
    half = len(steps) // 2
    assert 0 < steps[half - 1]["cut"] <= 6
    assert steps[-1]["cut"] == steps[half - 1]["cut"]


@pytest.mark.parametrize("name", ["gemma3", "llava"])
def test_blank_images_and_padding_change_nothing(
    name: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Rows with an image and without one, on the CPU: the update of the whole epoch; evaluation has its own shapes."""
    data = write_mixed_rows(tmp_path / "data", steps=8)
    flags = {**SETTINGS, "do_eval": True, "max_steps": 1, "max_grad_norm": 1e9, "logging_steps": 1}
    del flags["num_train_epochs"], flags["validation_fraction"]
    model = model_folder(name)
    alone = run(model, data, tmp_path / "alone", **{**flags, "per_device_train_batch_size": 16}, static_shapes=False)
    packed = run(
        model, data, tmp_path / "packed", **flags, **PACKED, static_shapes=True, gradient_accumulation_steps=16
    )
    assert packed["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-5)
    assert logged(tmp_path / "packed", "grad_norm") == pytest.approx(logged(tmp_path / "alone", "grad_norm"), rel=1e-5)
    assert packed["eval_perplexity"] == pytest.approx(alone["eval_perplexity"], rel=1e-5)
    lengths = json.loads((tmp_path / "packed" / "pack_lengths.json").read_text(encoding="utf-8"))
    assert sorted(lengths["train"]["images"]) == [0] * 8 + [1] * 8
