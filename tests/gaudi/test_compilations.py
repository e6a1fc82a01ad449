"""Graphs compiled over rows of every length, with images of every size, in every mode; and host reads in a step."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.rows import write_varied_rows
from support.stacks import NEW_ROAD, OLD_ROAD, RECORDER, Road, on_hpu, on_new_road, recorded, run_words

SHAPES = ("gemma3", "llava", "qwen2_5_vl")
LOGGING = 15
COMPILED = replace(NEW_ROAD, variables=on_new_road(PT_HPU_TC_MODE="1"))
MODES = {"lazy": OLD_ROAD, "eager": NEW_ROAD, "compile": COMPILED}
ROWS = {"lazy": 100, "eager": 40, "compile": 60}
"""Lazy graphs hold whole steps: more rows meet more combinations."""
UNPLANNED_ROWS = {"lazy": 200, "eager": 60}
"""Enough for new shapes to exceed the plan twice over."""
RUNS = [(mode, shape) for mode in MODES for shape in SHAPES if (mode, shape) != ("compile", "llava")]
"""dynamo needs seconds for each graph, and LLaVA's are the fewest."""


def record(
    shape: str, road: Road, data: Path, folder: Path, model_folder: Callable[[str], Path], **more: object
) -> Any:
    settings = {
        "do_train": True,
        "do_eval": True,
        "bf16": False,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "logging_steps": LOGGING,
        "num_train_epochs": 2,
        **more,
    }
    words = on_hpu(model_folder(shape), data, folder / "out", **settings)
    return recorded(folder / "records", [words], python=road.python, variables=road.variables)[0][0]


@pytest.fixture(scope="module")
def data_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    made: dict[int, Path] = {}

    def data(rows: int) -> Path:
        if rows not in made:
            made[rows] = write_varied_rows(tmp_path_factory.mktemp("varied") / "data", rows=rows, validation=12)
        return made[rows]

    return data


@pytest.fixture(scope="module", params=RUNS, ids="-".join)
def found(
    request: pytest.FixtureRequest,
    data_of: Callable[[int], Path],
    tmp_path_factory: pytest.TempPathFactory,
    model_folder: Callable[[str], Path],
) -> Any:
    """The record of one run in one mode, with the mode's name."""
    mode, shape = request.param
    # It breaks Qwen's tower at the sizes that it reads: 18 pieces a shape.
    more = {"max_shapes": 2} if mode == "compile" else {}
    folder = tmp_path_factory.mktemp(f"{mode} {shape}")
    return mode, record(shape, MODES[mode], data_of(ROWS[mode]), folder, model_folder, **more)


def test_graphs_stay_within_the_announced_budget(found: Any) -> None:
    mode, record = found
    if mode == "lazy":
        assert record["end"]["cut"] <= record["budget"]
    if mode == "compile":
        assert 1 < record["end"]["most_of_one_code"] <= record["budget"]
        assert record["end"]["dynamic"] == 0
    assert (record["end"]["graphs"] > 0) == (mode == "compile")


def test_the_second_epoch_compiles_nothing(found: Any) -> None:
    """In eager mode: it has no operator of shapes that the first has not."""
    steps = found[1]["steps"]
    half = len(steps) // 2
    assert half > LOGGING, "something was logged in the first epoch"
    for name in ("cut", "graphs"):
        assert steps[-1][name] == steps[half - 1][name], name
    assert steps[half - 1]["cut"] > steps[0]["cut"], "the counter sees the first epoch's shapes"


def test_a_step_reads_nothing_on_the_host(found: Any) -> None:
    reads = [step["reads"] for step in found[1]["steps"]]
    between = [after - before for before, after in itertools.pairwise(reads)]
    # Loss and gradient norm are read after every LOGGING-th step; the count before a step has them.
    logged = set(range(LOGGING - 1, len(between), LOGGING))
    assert [count for place, count in enumerate(between) if place not in logged and count] == []
    assert all(between[place] > 0 for place in logged), "the counter sees what logging reads"


@pytest.mark.parametrize("mode", ["lazy", "eager"])
def test_padding_to_the_longest_row_exceeds_it(
    mode: str, data_of: Callable[[int], Path], tmp_path: Path, model_folder: Callable[[str], Path]
) -> None:
    """The control: without a plan new shapes keep coming."""
    road, data = MODES[mode], data_of(UNPLANNED_ROWS[mode])
    free = record("qwen2_5_vl", road, data, tmp_path, model_folder, static_shapes=False, num_train_epochs=1)
    assert free["budget"] is None
    # Lazy graphs are bounded; eager operators are counted.
    steps = {"max_steps": 1} if mode == "lazy" else {"num_train_epochs": 1}
    planned = record("qwen2_5_vl", road, data, tmp_path / "planned", model_folder, **steps)
    bound = planned["budget"] if mode == "lazy" else planned["end"]["cut"]
    assert free["end"]["cut"] > 2 * bound


def test_a_recompile_limit_below_the_shapes_is_seen(
    data_of: Callable[[int], Path], tmp_path: Path, model_folder: Callable[[str], Path]
) -> None:
    """The control of `torch.compile`: the recorder lets dynamo fail at its limit, which the runs above never reach."""
    settings = {"do_train": True, "bf16": False, "per_device_train_batch_size": 2, "cache_size_limit": 1}
    words = on_hpu(model_folder("gemma3"), data_of(60), tmp_path / "out", num_train_epochs=1, **settings)
    (tmp_path / "runs.json").write_text(json.dumps([words]))
    done = run_words(
        [RECORDER, tmp_path / "report.json", tmp_path / "runs.json"],
        python=COMPILED.python,
        variables=COMPILED.variables,
    )
    assert done.returncode != 0
    assert "FailOnRecompileLimitHit" in done.stderr
