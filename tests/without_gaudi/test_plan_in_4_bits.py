"""The memory plan of QLoRA: against bitsandbytes' own tensors, and against a training run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest

from support.peaks import watch_training
from support.rows import write_uneven_rows
from support.runs import script_flags
from vlm_lora.cli.main import main, run_script
from vlm_lora.memory.plan import NF4_BITS, NF4_DOUBLE_BITS
from vlm_lora.model.quantization import find_layers
from vlm_lora.training import trainer

TOLERANCE = 0.10
CODES = 64 + 1024
"""Bytes of the tables that a code stands for: one for a weight, one for a scale. The plan leaves them out."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_uneven_rows(tmp_path_factory.mktemp("plan") / "data", rows=8)


def planned(model: Path, rows: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    flags = ["--model_name_or_path", str(model), "--dataset_name", str(rows), "--validation_fraction", "0"]
    assert main(["plan", *flags, "--json", *words]) == 0
    [device] = json.loads(capsys.readouterr().out)["devices"]
    found: dict[str, Any] = device
    return found


def packed(weight: Any) -> int:
    """Return the bytes of a quantized weight and its scales, as bitsandbytes holds them."""
    state = weight.quant_state
    scales = [state.absmax, *([state.offset, state.state2.absmax] if state.nested else [])]
    return int(weight.nbytes + sum(tensor.nbytes for tensor in scales))


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize(("double", "bits"), [(False, NF4_BITS), (True, NF4_DOUBLE_BITS)])
def test_bits_are_those_of_bitsandbytes(kind: str, double: bool, bits: float) -> None:
    layer = bitsandbytes.nn.Linear4bit(1536, 512, bias=False, quant_type=kind, compress_statistics=double).to("cpu")
    assert packed(layer.weight) == pytest.approx(1536 * 512 * bits / 8, abs=8)
    state = layer.weight.quant_state
    assert state.code.nbytes + (state.state2.code.nbytes if double else 0) <= CODES


@pytest.mark.parametrize("words", [(), ("--bnb_4bit_use_double_quant",)], ids=" ".join)
def test_the_languages_linear_layers_are_counted_in_4_bits(
    words: tuple[str, ...], rows: Path, model_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from support.tiny.batches import load_plainly

    folder = model_folder("qwen2_5_vl")
    _, model = load_plainly(folder)
    elements = sum(model.get_submodule(name).weight.numel() for name in find_layers(model.config).quantized)
    whole = planned(folder, rows, capsys, "--device", "H200")["items"]
    small = planned(folder, rows, capsys, "--device", "H200", "--load_in_4bit", *words)["items"]
    bits = 4 + 8 / 64 + 32 / (64 * 256) if words else 4 + 32 / 64
    assert whole["weights"] - small["weights"] == pytest.approx(elements * (16 - bits) / 8, abs=100)
    assert whole["adapter"] == small["adapter"]
    largest = max(model.get_submodule(name).weight.numel() for name in find_layers(model.config).quantized)
    assert small["communication"] == 2 * largest, "one matrix is unpacked to bf16"


@pytest.mark.parametrize("words", [(), ("--gradient_checkpointing",)], ids=" ".join)
def test_plan_is_what_training_allocates(
    words: tuple[str, ...],
    rows: Path,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = ("--per_device_train_batch_size", "4", "--load_in_4bit", *words)
    device = planned(model_folder("llava"), rows, capsys, *common, "--device", "CPU")
    found: dict[str, Any] = {}
    monkeypatch.setattr("vlm_lora.training.trainer.build_trainer", watch_training(trainer.build_trainer, found))
    flags = script_flags(model_folder("llava"), rows, tmp_path / "out", do_train=True, max_steps=2, image_cache="off")
    assert run_script([*flags, "--validation_fraction", "0", *common]) == 0
    predicted = device["total_bytes"] - device["items"]["overhead"]
    assert predicted == pytest.approx(found["measured"], rel=TOLERANCE)


def test_4_bits_are_proposed_where_they_are_to_be_had(
    rows: Path, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vlm_lora_cuda.devices._TOTALS_MIB", {"Small": 0.1})
    monkeypatch.setattr("vlm_lora_cuda.devices.CONTEXT_BYTES", 0)
    monkeypatch.setattr("vlm_lora_hpu.devices._TOTALS_GIB", {"Gaudi2": 1e-4})
    folder = model_folder("qwen2_5_vl")
    small = ["--per_device_train_batch_size", "1", "--gradient_checkpointing"]

    def proposed(*words: str) -> dict[str, int]:
        found = planned(folder, rows, capsys, *small, *words)
        return {each["flags"]: each["total_bytes"] for each in found["proposals"]}

    offered = proposed("--device", "small")
    assert (
        offered["--load_in_4bit"]
        == planned(folder, rows, capsys, *small, "--device", "small", "--load_in_4bit")["total_bytes"]
    )
    assert not any("--load_in_4bit" in flags for flags in proposed("--device", "gaudi2"))
    zero3 = proposed("--device", "small", "--world_size", "2", "--deepspeed", "zero3")
    assert not any("--load_in_4bit" in flags for flags in zero3)
    taken = proposed("--device", "small", "--world_size", "2", "--load_in_4bit")
    assert not any("zero3" in flags or "--load_in_4bit" in flags for flags in taken)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "H100", "--peft_method", "none"], "--load_in_4bit with --peft_method none"),
        (["--device", "H100", "--deepspeed", "zero3"], "--load_in_4bit with FSDP or ZeRO-3"),
        (["--device", "H100", "--fsdp", "full_shard"], "--load_in_4bit with FSDP or ZeRO-3"),
        (["--device", "gaudi2"], "cannot be used with the gaudi backend"),
    ],
)
def test_what_training_refuses_is_not_planned(
    words: list[str], said: str, model_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", "--model_name_or_path", str(model_folder("llava")), "--max_length", "256", "--load_in_4bit"]
    assert main([*command, *words]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("error: ") == 1
