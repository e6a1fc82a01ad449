"""Graphs compiled over 200 steps of rows of every length, with images of every size; and host reads in a step."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.rows import write_varied_rows
from support.stacks import GAUDI, on_hpu, recorded

SHAPES = ("gemma3", "llava", "qwen2_5_vl")
LOGGING = 50


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_varied_rows(tmp_path_factory.mktemp("varied") / "data", rows=200, validation=12)


def record(shape: str, data: Path, folder: Path, model_folder: Callable[[str], Path], **flags: object) -> Any:
    settings = {
        "do_train": True,
        "do_eval": True,
        "bf16": False,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "logging_steps": LOGGING,
        "num_train_epochs": 2,
        **flags,
    }
    words = on_hpu(model_folder(shape), data, folder / "out", **settings)
    return recorded(folder / "records", [words], python=GAUDI, variables={"PT_HPU_LAZY_MODE": "1"})[0][0]


@pytest.fixture(scope="module", params=SHAPES)
def found(
    request: pytest.FixtureRequest,
    data: Path,
    tmp_path_factory: pytest.TempPathFactory,
    model_folder: Callable[[str], Path],
) -> Any:
    return record(request.param, data, tmp_path_factory.mktemp(request.param), model_folder)


def test_graphs_stay_within_the_announced_budget(found: Any) -> None:
    steps = found["steps"]
    assert len(steps) >= 200
    assert found["end"]["graphs"] <= found["budget"]
    assert steps[-1]["graphs"] == steps[len(steps) // 2 - 1]["graphs"], "the second epoch compiles nothing"


def test_a_step_reads_nothing_on_the_host(found: Any) -> None:
    reads = [step["reads"] for step in found["steps"]]
    between = [after - before for before, after in itertools.pairwise(reads)]
    # Loss and gradient norm are read after every fiftieth step; the count before a step has them.
    logged = set(range(LOGGING - 1, len(between), LOGGING))
    assert [count for place, count in enumerate(between) if place not in logged and count] == []
    assert all(between[place] > 0 for place in logged), "the counter sees what logging reads"


def test_padding_to_the_longest_row_exceeds_it(data: Path, tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    """The control: without a plan new shapes keep coming."""
    found = record("qwen2_5_vl", data, tmp_path, model_folder, static_shapes=False, num_train_epochs=1)
    planned = record("qwen2_5_vl", data, tmp_path / "planned", model_folder, max_steps=1)
    assert found["budget"] is None
    assert found["end"]["graphs"] > 2 * planned["budget"]
