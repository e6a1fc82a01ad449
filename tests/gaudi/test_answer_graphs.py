"""Answers while it trains on the simulated device: nothing is compiled any more once the first evaluation was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.rows import write_varied_rows
from support.stacks import NEW_ROAD, OLD_ROAD, ROOT, SPAWN, Road, on_hpu, recorded

STEPS = 4
FLAGS: dict[str, object] = {
    "do_train": True,
    "do_eval": True,
    "bf16": False,
    "max_steps": STEPS,
    "learning_rate": 0.05,  # so that answers change
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "predict_with_generate": True,
    "eval_generate_samples": 3,
    "max_new_tokens": 4,
    "max_shapes": 1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_varied_rows(tmp_path_factory.mktemp("varied") / "data", rows=8, validation=7)


def cut(
    shape: str, road: Road, data: Path, folder: Path, model_folder: Callable[[str], Path], **more: object
) -> list[int]:
    """Return how many graphs there were after each step, and at the end."""
    words = on_hpu(model_folder(shape), data, folder / "out", **{**FLAGS, **more})
    [[record]] = recorded(folder / "records", [words], python=road.python, variables=road.variables)
    found: list[Any] = [*record["steps"], record["end"]]
    return [int(one["cut"]) for one in found]


@pytest.mark.parametrize(("shape", "road"), [("qwen2_5_vl", OLD_ROAD), ("gemma3", NEW_ROAD)], ids=str)
def test_later_evaluations_compile_nothing(
    shape: str, road: Road, data: Path, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    counts = cut(shape, road, data, tmp_path, model_folder)
    assert counts[1] > counts[0], "the first evaluation compiles"
    assert len(set(counts[2:STEPS])) == 1, counts
    lines = (tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 7
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    assert [entry["eval_answers"] for entry in history if "eval_answers" in entry] == [3] * STEPS


@pytest.mark.parametrize(("engine", "road"), [("zero3", OLD_ROAD), ("", NEW_ROAD)], ids=str)
def test_two_cards_answer_as_one(
    engine: str, road: Road, data: Path, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Seven rows on two cards: the last batch is one card's, and under ZeRO-3 the other takes part."""
    flags = {**FLAGS, "max_steps": 1, "learning_rate": 0.0}
    file = {"deepspeed": ROOT / "launchers" / "deepspeed" / f"{engine}.json"} if engine else {}
    found = []
    two: tuple[str | Path, ...] = (SPAWN, "--world_size", "2", *(["--use_deepspeed"] if engine else []))
    runs: dict[str, tuple[dict[str, object], tuple[str | Path, ...]]] = {"one": ({}, ()), "two": ({**file}, two)}
    for name, (more, launcher) in runs.items():
        words = on_hpu(model_folder("gemma3"), data, tmp_path / name, **{**flags, **more})
        folder = tmp_path / f"{name} records"
        ranks = recorded(folder, [words], python=road.python, launcher=launcher, variables=road.variables)
        assert [rank[0]["world_size"] for rank in ranks] == [len(ranks)] * len(ranks)
        lines = (tmp_path / name / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        found.append((len(ranks), [json.loads(line)["generated"] for line in lines]))
    assert [count for count, _ in found] == [1, 2]
    assert found[0][1] == found[1][1]
    assert len(found[0][1]) == 7


def test_prompts_of_their_own_lengths_are_seen(data: Path, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """The control: other rows at each evaluation, without planned shapes."""
    first = {"max_steps": 2, "do_eval": False, "eval_generate_samples": 7}  # all rows, at the evaluation behind step 1
    counts = cut("gemma3", OLD_ROAD, data, tmp_path, model_folder, static_shapes=False, **first)
    planned = cut("gemma3", OLD_ROAD, data, tmp_path / "planned", model_folder, **first)
    assert counts[1] - counts[0] > planned[1] - planned[0]
