"""QLoRA on the CPU: the language model in 4 bits and nothing else, trained, saved, put on the whole base again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from torch import nn

from support.rows import write_uneven_rows
from support.runs import capture_trainer, logged, run, script_flags
from support.stacks import MAIN, run_words
from support.tiny import available
from support.tiny.batches import build_batch, load_plainly
from vlm_lora.cli.main import main, run_script
from vlm_lora.errors import ModelError
from vlm_lora.model.families import family_of
from vlm_lora.model.parts import base_of, count_parameters, find_parts
from vlm_lora.model.quantization import check_quantized, find_layers

FAMILIES = ("gemma3", "qwen2_5_vl", "llava")
TRAIN = {"do_train": True, "max_steps": 8, "learning_rate": 1e-2, "per_device_train_batch_size": 2, "lora_rank": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_uneven_rows(tmp_path_factory.mktemp("rows") / "data", rows=4, validation=2)


def in_4_bits(model: nn.Module) -> dict[str, Any]:
    """The quantized layers by their name in the base, with or without LoRA around them."""
    modules = base_of(model).named_modules()
    return {name.removesuffix(".base_layer"): m for name, m in modules if type(m).__name__ == "Linear4bit"}


@pytest.mark.parametrize("name", available())
def test_the_layers_are_found_without_weights(name: str, model_folder: Callable[[str], Path]) -> None:
    _, model = load_plainly(model_folder(name))
    parts = find_parts(model)
    remote = {"trust_remote_code": True} if name == "phi3_v" else {}
    # Not the loaded model's: timm's towers change theirs.
    config = transformers.AutoConfig.from_pretrained(model_folder(name), **remote)
    layers = find_layers(config, trust_remote_code=bool(remote))
    linears = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert set(layers.quantized) | set(layers.kept) == linears
    assert {parts.part_of(n) for n in layers.quantized} == {"language"}
    unread = {n for n in layers.kept if parts.part_of(n) == "language"}
    assert not any(parts.carries_lora(n) for n in unread)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_trains_saves_and_reloads(
    name: str,
    checkpointing: bool,
    model_folder: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trainers = capture_trainer(monkeypatch)
    before: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(
        "vlm_lora.model.quantization.check_quantized", lambda model, layers: remember(model, layers, before)
    )
    output = tmp_path / "out"
    flags = {**TRAIN, "do_eval": True, "load_in_4bit": True, "gradient_checkpointing": checkpointing}
    results = run(model_folder(name), data, output, **flags, log_level="info")
    losses = logged(output, "loss")
    assert sum(losses[-2:]) < sum(losses[:2])
    trained = trainers[0].model
    assert trained.is_gradient_checkpointing == checkpointing
    said = capsys.readouterr().err
    assert f"in 4 bits; {len(linears_elsewhere(trained))} of vision tower" in said
    assert "trainable tensors got a gradient" in said
    # The base is as it was loaded, and in 4 bits in the language model alone.
    layers = in_4_bits(trained)
    assert set(layers) == set(find_layers(trained.config).quantized) == set(before)
    assert all(torch.equal(layer.weight.data, before[key]) for key, layer in layers.items())
    assert {p.dtype for p in trained.parameters() if p.requires_grad} == {torch.float32}
    # The adapter, by plain PEFT on the whole base, is near what was trained; without it the base is not.
    batch = build_batch(transformers.AutoProcessor.from_pretrained(model_folder(name)))
    ours = logits_of(trained, batch)
    _, whole = load_plainly(model_folder(name))
    plain = logits_of(whole, batch)
    reloaded = logits_of(PeftModel.from_pretrained(whole, output), batch)
    with trained.disable_adapter():
        quantized = logits_of(trained, batch)
    assert (quantized - plain).abs().max() > 1e-3, "nothing was quantized"
    assert distance(reloaded, ours) < 0.8 * distance(plain, ours)
    assert results["eval_perplexity"] > 1


def remember(model: nn.Module, layers: Any, before: dict[str, torch.Tensor]) -> None:
    check_quantized(model, layers)
    before |= {name: layer.weight.data.clone() for name, layer in in_4_bits(model).items()}


def linears_elsewhere(model: nn.Module) -> tuple[str, ...]:
    return find_layers(base_of(model).config).kept


def logits_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(**batch).logits
    return found


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).square().mean())


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
def test_kind_and_double_quantization_reach_the_weights(
    kind: str, double: bool, model_folder: Callable[[str], Path], data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    trainers = capture_trainer(monkeypatch)
    flags = {"load_in_4bit": True, "bnb_4bit_quant_type": kind, "use_bnb_nested_quant": double, "bf16": True}
    run(model_folder("llava"), data, tmp_path / "out", **{**TRAIN, "max_steps": 1}, **flags)
    for layer in in_4_bits(trainers[0].model).values():
        assert layer.weight.quant_state.quant_type == kind
        assert layer.weight.quant_state.nested is double
        assert layer.compute_dtype == torch.bfloat16, "that of --bf16"


def test_parameters_are_counted_as_the_weights_they_stand_for(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    trainers = capture_trainer(monkeypatch)
    run(model_folder("gemma3"), data, tmp_path / "out", **{**TRAIN, "max_steps": 1}, load_in_4bit=True)
    _, plain = load_plainly(model_folder("gemma3"))
    parts = find_parts(plain)
    quantized, whole = count_parameters(trainers[0].model, parts), count_parameters(plain, parts)
    assert {part: count[1] - count[0] for part, count in quantized.items()} == {p: c[1] for p, c in whole.items()}


def test_an_evaluated_adapter_takes_the_base_as_it_is_unless_told(
    model_folder: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(model_folder("llava"), data, tmp_path / "out", **TRAIN, load_in_4bit=True)
    trainers = capture_trainer(monkeypatch)
    flags = script_flags(tmp_path / "out", data, tmp_path / "eval", log_level="info")
    assert main(["eval", *flags]) == 0
    assert not in_4_bits(trainers[0].model)
    assert "Type --load_in_4bit" in capsys.readouterr().err
    assert main(["eval", *flags, "--load_in_4bit", "--overwrite_output_dir"]) == 0
    assert in_4_bits(trainers[1].model)
    assert "was trained on a base in 4 bits" not in capsys.readouterr().err


def test_evaluating_on_the_way_changes_nothing(model_folder: Callable[[str], Path], data: Path, tmp_path: Path) -> None:
    """On some CPUs bitsandbytes would rewrite the weights at the first evaluation."""
    run(model_folder("llava"), data, tmp_path / "plain", **TRAIN, load_in_4bit=True)
    often = {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True}
    run(model_folder("llava"), data, tmp_path / "often", **TRAIN, **often, load_in_4bit=True)
    assert logged(tmp_path / "often", "loss") == logged(tmp_path / "plain", "loss")
    assert len(logged(tmp_path / "often", "eval_loss")) == 5


def test_questions_too(model_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ask", "--model_name_or_path", str(model_folder("llava")), "--prompt", "Hi", "--use_cpu"]
    assert main([*words, "--load_in_4bit", "--max_new_tokens", "2"]) == 0, capsys.readouterr().err


def test_a_tower_in_4_bits_is_an_error(model_folder: Callable[[str], Path]) -> None:
    """The short name leaves nothing out of it: the reason for full names, and for the check."""
    folder = model_folder("llava")
    config = transformers.AutoConfig.from_pretrained(folder)
    layers = find_layers(config, family_of(config))
    settings = transformers.BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["lm_head"])
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, quantization_config=settings, device_map={"": "cpu"}
    )
    with pytest.raises(ModelError, match=r"layers are in 4 bits instead of 14; they differ in .*vision_tower"):
        check_quantized(model, layers)


WRONG: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "full weights": ({"peft_method": "none"}, ("--load_in_4bit", "--peft_method lora")),
    "eight bits": ({"load_in_4bit": False, "load_in_8bit": True}, ("load_in_8bit", "--load_in_4bit")),
    "unknown kind": ({"bnb_4bit_quant_type": "int4"}, ("--bnb_4bit_quant_type int4", "nf4, fp4")),
    "unknown compute dtype": ({"bnb_4bit_compute_dtype": "int8"}, ("bnb_4bit_compute_dtype", "bfloat16")),
    "16-bit evaluation": ({"bf16_full_eval": True}, ("--bf16_full_eval", "--load_in_4bit")),
}


@pytest.mark.parametrize("name", WRONG)
def test_refusals(
    name: str, model_folder: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, words = WRONG[name]
    command = script_flags(model_folder("llava"), data, tmp_path / "out", **{**TRAIN, "load_in_4bit": True, **flags})
    assert run_script(command) == 1
    printed = capsys.readouterr().err
    assert printed.count("error: ") == 1, printed
    for word in words:
        assert word in printed, printed


@pytest.mark.parametrize("engine", [{"ACCELERATE_USE_FSDP": "true"}, {"ACCELERATE_USE_DEEPSPEED": "true"}])
def test_engines_that_the_launcher_asked_for_are_refused_too(
    engine: dict[str, str], model_folder: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    """`accelerate launch --config_file zero3.yaml`: the run's own flags do not speak of it."""
    command = script_flags(model_folder("llava"), data, tmp_path / "out", **{**TRAIN, "load_in_4bit": True})
    done = run_words(
        ["run_lora_vlm.py", *command], python=MAIN, variables={**engine, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    )
    assert done.returncode == 1, done.stderr
    assert "--load_in_4bit with FSDP or ZeRO-3" in done.stderr


def test_without_bitsandbytes(
    model_folder: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("vlm_lora_torch.quantization.importlib.util.find_spec", lambda name: None)
    command = script_flags(model_folder("llava"), data, tmp_path / "out", **TRAIN, load_in_4bit=True)
    assert run_script(command) == 1
    assert "pip install bitsandbytes" in capsys.readouterr().err
