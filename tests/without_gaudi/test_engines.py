"""DDP, FSDP, ZeRO-2 and ZeRO-3 on two CPU processes against one process at the same global batch.

A launch line that falls back to plain data parallelism, or to one process, matches every loss: so the world size and
the class around the model are asserted each time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support.rows import write_uneven_rows
from support.stacks import MAIN, losses_of, on_cpu, recorded
from vlm_lora.config.run_config import ModelConfig
from vlm_lora.launch.launching import free_port
from vlm_lora.model.loading import load_model

FAMILIES = ("gemma3", "qwen2_5_vl", "llava")
LORA = {"lora_targets": "all", "learning_rate": 1e-4}
FULL = {"peft_method": "none", "freeze_vision": False, "learning_rate": 1e-5}
METHODS = {"lora": LORA, "full": FULL}
CAPPED, DIVIDED = "gemma4", "llava_next-granite"
"""What their models do to logits behind the head is done in its chunks."""
CASES = [*((family, method) for family in FAMILIES for method in METHODS), (CAPPED, "full"), (DIVIDED, "lora")]
SHARED_OUT = [*((family, "lora") for family in FAMILIES), ("gemma3", "full"), (CAPPED, "full"), (DIVIDED, "lora")]
"""Where weights are shared out: full weights once tied, and once behind a cap."""
CASES_OF = {"zero2": [("gemma3", "lora"), ("gemma3", "full")], "fsdp": SHARED_OUT, "zero3": SHARED_OUT}
"""DDP and one process have all cases."""
FEW_ROWS = {"RECORDER_CHUNK_ELEMENTS": "1000"}
"""So that tiny vocabularies have chunks of a few rows, and processes have different numbers of chunks."""

TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
ENGINES: dict[str, tuple[dict[str, object], str, dict[str, str]]] = {
    "ddp": ({}, "DistributedDataParallel", {}),
    "fsdp": ({"fsdp": True}, "FSDP", {"RECORDER_FSDP_ON_CPU": "1"}),
    "zero2": ({"deepspeed": "zero2"}, "DeepSpeedEngine", {}),
    "zero3": ({"deepspeed": "zero3"}, "DeepSpeedEngine", {}),
}
"""Flags, the class around the model, variables."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("engines")
    write_uneven_rows(place / "data", rows=8, validation=5)
    return place


@pytest.fixture(scope="module")
def place_of(folder: Path, model_folder: Callable[[str], Path]) -> Callable[[str], Path]:
    """Return what a family's folder is; Gemma 4's caps its logits, at a value that tiny ones reach."""
    capped = Path(shutil.copytree(model_folder(CAPPED), folder / CAPPED))
    config = json.loads((capped / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["final_logit_softcapping"] = 2.0
    (capped / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return lambda family: capped if family == CAPPED else model_folder(family)


def all_runs(folder: Path, place_of: Callable[[str], Path], engine: str, batch: int) -> list[list[str]]:
    more = ENGINES[engine][0] if engine in ENGINES else {}
    return [
        on_cpu(
            place_of(family),
            folder / "data",
            folder / engine / f"{family} {method}",
            do_train=True,
            do_eval=True,
            max_steps=3,
            per_device_train_batch_size=batch,
            **METHODS[method],
            **more,
        )
        for family, method in CASES_OF.get(engine, CASES)
    ]


@pytest.fixture(scope="module")
def single(folder: Path, place_of: Callable[[str], Path]) -> list[Any]:
    """One process with the global batch and its logits in one chunk: a record per family and method."""
    runs = all_runs(folder, place_of, "single", 4)
    return recorded(folder / "single records", runs, python=MAIN, variables={"RECORDER_DIVIDED": "1"})[0]


@pytest.mark.xdist_group("engines")
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_train_as_one(
    engine: str, folder: Path, place_of: Callable[[str], Path], single: list[Any]
) -> None:
    _, wrapper, variables = ENGINES[engine]
    ranks = recorded(
        folder / f"{engine} records",
        all_runs(folder, place_of, engine, 2),
        python=MAIN,
        launcher=TORCHRUN,
        variables={**variables, **FEW_ROWS, "RECORDER_DIVIDED": "1"},
    )
    for number, (family, method) in enumerate(CASES_OF.get(engine, CASES)):
        alone, name = single[CASES.index((family, method))], f"{family} {method}"
        check_equal([records[number] for records in ranks], alone, wrapper=wrapper)
        check_files(folder / "single" / name, folder / engine / name, place_of(family))
        assert set(alone["chunks"]) == {1}
        one, other = (records[number]["chunks"] for records in ranks)
        assert all(here != there for here, there in zip(one, other, strict=True))


def check_equal(ranks: Sequence[Any], single: Any, *, wrapper: str) -> None:
    assert [record["world_size"] for record in ranks] == [2, 2]
    assert all(record["wrapped"].startswith(wrapper) for record in ranks)
    assert single["world_size"] == 1
    assert losses_of(ranks) == pytest.approx(losses_of([single]), rel=1e-5)
    assert losses_of(ranks)[0] != pytest.approx(losses_of([single])[1], rel=1e-3), "another batch has another loss"
    assert ranks[0]["grad_norms"] == pytest.approx(single["grad_norms"], rel=3e-4)
    assert ranks[0]["perplexity"] == pytest.approx(single["perplexity"], rel=1e-5)
    assert ranks[0]["parameters"] == ranks[1]["parameters"]


def check_files(single: Path, several: Path, base: Path) -> None:
    """The saved weights are complete, named as the base's, close to one process's, and load as they were saved."""
    adapter = (single / "adapter_model.safetensors").exists()
    file = "adapter_model.safetensors" if adapter else "model.safetensors"
    expected, found = load_file(single / file), load_file(several / file)
    assert set(found) == set(expected)
    if not adapter:
        assert set(found) == set(load_file(base / file))
        beyond = sum(((found[name] - expected[name]).abs() > 1e-5).sum().item() for name in expected)
        assert beyond <= 5e-4 * sum(tensor.numel() for tensor in expected.values())
    else:
        assert all(torch.allclose(found[name], expected[name], rtol=0, atol=5e-5) for name in expected)
        assert any(tensor.abs().max() > 5e-5 for name, tensor in found.items() if "lora_B" in name), "it has moved"
    model = load_model(ModelConfig(model_name_or_path=str(several)), model_kwargs={"torch_dtype": torch.float32})
    loaded = {name: tensor for name, tensor in model.named_parameters() if not adapter or "lora" in name}
    loaded |= {name: tensor for name, tensor in model.named_buffers() if name in found}
    assert sum(tensor.numel() for tensor in loaded.values()) == sum(tensor.numel() for tensor in found.values())
    assert sum(float(t.detach().double().abs().sum()) for t in loaded.values()) == pytest.approx(
        sum(float(t.double().abs().sum()) for t in found.values()), rel=1e-6
    )


ACCELERATE = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"]
DEEPSPEED = ["-m", "deepspeed.launcher.runner", "--num_accelerators", "2", "--no_local_rank"]
PLAIN = ["--mixed_precision", "no", "--dynamo_backend", "no"]
LAUNCHES: dict[str, tuple[list[str], str, dict[str, str]]] = {
    "accelerate, ddp": ([*ACCELERATE, *PLAIN, "--multi_gpu"], "ddp", {}),
    "accelerate, zero3 by its own flags": (
        [*ACCELERATE, *PLAIN, "--use_deepspeed", "--zero_stage", "3"],
        "zero3",
        {"DS_ACCELERATOR": "cpu"},
    ),
    "accelerate, fsdp by its own flags": (
        [*ACCELERATE, *PLAIN, "--use_fsdp", "--fsdp_version", "2", "--fsdp_state_dict_type", "FULL_STATE_DICT"],
        "fsdp",
        {"RECORDER_FSDP_ON_CPU": "1"},
    ),
    "deepspeed, ddp": (DEEPSPEED, "ddp", {"DS_ACCELERATOR": "cpu"}),
    "deepspeed, zero3": (DEEPSPEED, "zero3", {"DS_ACCELERATOR": "cpu"}),
}


@pytest.mark.xdist_group("engines")
@pytest.mark.parametrize("launch", LAUNCHES)
def test_launchers_start_the_engine_that_was_asked_for(
    launch: str, folder: Path, model_folder: Callable[[str], Path], single: list[Any]
) -> None:
    launcher, engine, variables = LAUNCHES[launch]
    if launcher is DEEPSPEED:
        # Its own port, 29500, may be taken.
        launcher = [*DEEPSPEED, "--master_port", str(free_port())]
    flags = {} if "its own flags" in launch else ENGINES[engine][0]
    words = on_cpu(
        model_folder("gemma3"),
        folder / "data",
        folder / launch,
        do_train=True,
        do_eval=True,
        max_steps=3,
        per_device_train_batch_size=2,
        **LORA,
        **flags,
    )
    ranks = recorded(folder / f"{launch} records", [words], python=MAIN, launcher=launcher, variables=variables)
    check_equal([records[0] for records in ranks], single[0], wrapper=ENGINES[engine][1])
    assert json.loads((folder / launch / "adapter_config.json").read_text(encoding="utf-8"))["r"] == 16
