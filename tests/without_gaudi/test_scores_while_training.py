"""Answers and their scores are the same in batches of any size, on any number of processes, whatever shards the
weights; and an evaluation leaves the training as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.reading import BASE, pack_into_tar, write_reading_rows
from support.runs import logged, run
from support.stacks import MAIN, on_cpu, recorded
from vlm_lora.batching import collator

ROWS = 11
"""Uneven over two processes, and their answers end after one token or after seven."""
ANSWERING: dict[str, object] = {"predict_with_generate": True, "max_new_tokens": 16}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reading_rows(tmp_path_factory.mktemp("reading") / "data", rows=4, validation=ROWS)


def answers(output: Path) -> list[str]:
    """Return what was generated for each row, in order."""
    lines = (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["generated"] for line in lines]


def scores(results: dict[str, Any]) -> dict[str, Any]:
    names = ("exact_match", "exact_match_interval", "token_f1", "token_f1_interval", "answers")
    return {name: results[f"eval_{name}"] for name in names}


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, Any]]:
    """Answers and scores of one process, a row at a time."""
    output = tmp_path_factory.mktemp("plain") / "out"
    results = run(BASE, data, output, do_eval=True, generation_batch_size=1, **ANSWERING)
    found = answers(output)
    assert len(found) == results["eval_answers"] == ROWS
    assert len({len(text) for text in found}) > 3, "answers of several lengths"
    assert 0.3 < results["eval_exact_match"] < 0.9, "neither all nor none is right"
    return found, scores(results)


@pytest.mark.parametrize("size", [4, 16])
def test_batches_of_any_size_answer_alike(
    size: int, data: Path, plain: tuple[list[str], dict[str, Any]], tmp_path: Path
) -> None:
    results = run(BASE, data, tmp_path / "out", do_eval=True, generation_batch_size=size, **ANSWERING)
    assert (answers(tmp_path / "out"), scores(results)) == plain


def test_rows_of_a_tar_answer_alike(data: Path, plain: tuple[list[str], dict[str, Any]], tmp_path: Path) -> None:
    rows = pack_into_tar(data / "validation.jsonl", tmp_path / "validation.tar")
    train = pack_into_tar(data / "train.jsonl", tmp_path / "train.tar")
    flags = {"do_train": True, "streaming": True, "max_steps": 1, "learning_rate": 0.0, "validation_name": rows}
    results = run(BASE, train, tmp_path / "out", do_eval=True, generation_batch_size=4, **flags, **ANSWERING)
    assert (answers(tmp_path / "out"), scores(results)) == plain


def test_what_makes_a_run_faster_changes_no_answer(
    data: Path, plain: tuple[list[str], dict[str, Any]], tmp_path: Path
) -> None:
    faster = {"packing": True, "pack_length": 256, "cache_vision_features": "on", "image_cache": "on"}
    flags = {"do_train": True, "max_steps": 1, "learning_rate": 0.0, "eval_strategy": "steps", "eval_steps": 1}
    results = run(BASE, data, tmp_path / "out", do_eval=True, **faster, **flags, **ANSWERING)
    assert (answers(tmp_path / "out"), scores(results)) == plain


def test_padding_on_the_wrong_side_is_caught(
    data: Path, plain: tuple[list[str], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: answers begin behind the padding then."""
    stacked = collator._stacked
    monkeypatch.setattr(collator, "_stacked", lambda *args, **kwargs: stacked(*args, **{**kwargs, "left": False}))
    results = run(BASE, data, tmp_path / "out", do_eval=True, generation_batch_size=4, **ANSWERING)
    assert answers(tmp_path / "out") != plain[0]
    assert scores(results) != plain[1]


TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
ENGINES: dict[str, tuple[dict[str, object], str]] = {
    "ddp": ({}, "DistributedDataParallel"),
    "fsdp": ({"fsdp": True}, "FSDP"),
    "zero3": ({"deepspeed": "zero3"}, "DeepSpeedEngine"),
}
METHODS: dict[str, dict[str, object]] = {"lora": {}, "full": {"peft_method": "none"}}


@pytest.mark.xdist_group("engines")
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_answer_alike(
    engine: str, data: Path, plain: tuple[list[str], dict[str, Any]], tmp_path: Path
) -> None:
    """A step with a learning rate of 0 lets an engine wrap the model and leaves its weights."""
    flags, wrapper = ENGINES[engine]
    runs = [
        on_cpu(
            BASE,
            data,
            tmp_path / method,
            do_train=True,
            do_eval=True,
            max_steps=1,
            learning_rate=0.0,
            eval_strategy="steps",
            eval_steps=1,
            eval_generate_samples=3,
            generation_batch_size=2,
            **flags,
            **METHODS[method],
            **ANSWERING,
        )
        for method in METHODS
    ]
    variables = {"RECORDER_FSDP_ON_CPU": "1"} if engine == "fsdp" else {"DS_ACCELERATOR": "cpu"}
    ranks = recorded(tmp_path / "records", runs, python=MAIN, launcher=TORCHRUN, variables=variables)
    for place, method in enumerate(METHODS):
        assert [rank[place]["world_size"] for rank in ranks] == [2, 2]
        assert all(wrapper in rank[place]["wrapped"] for rank in ranks), method
        results = json.loads((tmp_path / method / "all_results.json").read_text(encoding="utf-8"))
        assert answers(tmp_path / method) == plain[0], method
        assert scores(results) == plain[1], method
        # During the training: three rows, the same on both processes.
        assert logged(tmp_path / method, "eval_answers")[0] == 3


def test_the_next_step_is_the_same_behind_an_evaluation(data: Path, tmp_path: Path) -> None:
    flags: dict[str, object] = {"do_train": True, "max_steps": 3, "learning_rate": 1e-2, "lora_dropout": 0.1}
    flags |= {"gradient_checkpointing": True, "seed": 3, "per_device_train_batch_size": 2}
    with_answers = {"do_eval": True, "eval_strategy": "steps", "eval_steps": 1, **ANSWERING}
    for name, more in (("with", with_answers), ("without", {})):
        run(BASE, data, tmp_path / name, **flags, **more)
    losses = {name: logged(tmp_path / name, "loss") for name in ("with", "without")}
    assert losses["with"] == losses["without"]
    assert len(set(losses["with"])) == 3
    assert len(logged(tmp_path / "with", "eval_exact_match")) == 3
    # The control: dropout draws, so other generators give other losses.
    run(BASE, data, tmp_path / "other", **{**flags, "seed": 4})
    assert logged(tmp_path / "other", "loss") != losses["with"]


def test_answers_are_generated_with_a_cache(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradient checkpointing turns the model's own setting off, which stays so."""
    from vlm_lora.evaluation.generation import Answerer

    seen: list[tuple[bool, int]] = []
    generate = Answerer._generate

    def watched(self: Answerer, *args: Any, **kwargs: Any) -> Any:
        base = self.model.get_base_model()
        widths: list[int] = []
        layer = next(module for name, module in base.named_modules() if name.endswith("language_model.layers.0"))
        handle = layer.register_forward_pre_hook(lambda module, given: widths.append(given[0].shape[1]))
        try:
            return generate(self, *args, **kwargs)
        finally:
            handle.remove()
            seen.append((base.config.use_cache or base.config.get_text_config().use_cache, max(widths[1:])))

    monkeypatch.setattr(Answerer, "_generate", watched)
    flags: dict[str, object] = {"do_train": True, "max_steps": 1, "gradient_checkpointing": True, **ANSWERING}
    run(BASE, data, tmp_path / "out", do_eval=True, eval_strategy="steps", eval_steps=1, **flags)
    assert len(seen) > 1
    assert set(seen) == {(False, 1)}, "one token a step, the setting is off"
