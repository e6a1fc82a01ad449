"""A simulated step against a real one, for every family: the same weights, the same peak by the allocator."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from support.peaks import highest_on_cpu, storage_bytes
from support.tiny import available
from support.tiny.batches import build_batch, load_plainly
from vlm_lora.backend import Precision
from vlm_lora.compat import IS_5, TRAINER_TURNS_CACHE_OFF, set_dtype
from vlm_lora.config.run_config import TuningConfig
from vlm_lora.memory import simulation
from vlm_lora.memory.ledger import BATCH
from vlm_lora.memory.trace import Step, StepTrace, trace_step
from vlm_lora.model.adapters.new_tokens import NewTokens, grow
from vlm_lora.model.checkpointing import enable_checkpointing
from vlm_lora.model.families import family_of
from vlm_lora.model.objective import SupervisedHead, gather_targets
from vlm_lora.model.parts import find_parts
from vlm_lora.model.quantization import find_layers
from vlm_lora.model.tuning import apply_tuning

TOLERANCE = 0.06
"""A kernel's own work space is what a simulation cannot see: tiny towers' convolutions have most of it."""
RANDOM_STATES = 16_384
"""Bytes: checkpointing keeps the state of the random number generator for each layer."""

FULL = TuningConfig(peft_method="none", freeze_vision=False)
FEW = ("gemma3", "qwen2_5_vl", "llava")
"""Three kinds of towers, where the family is not the point."""
UNLIKE = ("gemma3n", "mllama", "phi4_multimodal")
"""Those whose models are built unlike them."""
FAMILIES = available() if IS_5 else [*FEW, *UNLIKE]


def rows_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return two equal rows with four supervised tokens each, as the collator makes them."""
    processor, _ = load_plainly(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = build_batch(processor)
    length = batch["input_ids"].shape[1]
    batch["labels"] = batch["input_ids"].clamp(min=1)
    batch["supervised_positions"] = torch.arange(length - 5, length - 1)[None]
    return batch


def simulated(
    folder: Path,
    batch: Mapping[str, torch.Tensor],
    tuning: TuningConfig,
    checkpointing: bool,
    precision: Precision | None = None,
    published: torch.dtype | None = None,
    tokens: NewTokens | None = None,
) -> StepTrace:
    remote = (folder / "modeling_phi3_v.py").exists()
    config = AutoConfig.from_pretrained(folder, trust_remote_code=remote)
    if published is not None:
        set_dtype(config, published)
    step = Step(
        tuning=tuning,
        checkpointing=checkpointing,
        precision=precision or Precision(weights="float32"),
        attention=None,
        fused_attention=True,
        new_tokens=tokens,
        rows=None if tokens is None else max(tokens.ids) + 1,
    )
    return trace_step(step, config=config, family=family_of(config), batch=batch, trust_remote_code=remote)


def peak_of(trace: StepTrace) -> int:
    """Return the peak without weights and batch."""
    return max(moment.gradients + moment.passing_bytes - moment.passing[BATCH] for moment in trace.moments)


def measured(
    folder: Path,
    batch: Mapping[str, torch.Tensor],
    tuning: TuningConfig,
    checkpointing: bool,
    tokens: NewTokens | None = None,
) -> int:
    """Return the most that forward and backward pass have allocated at once."""
    _, model = load_plainly(folder)
    if TRAINER_TURNS_CACHE_OFF:
        for config in (model.config, model.config.get_text_config()):
            config.use_cache = False
    if tokens is not None:
        grow(model, find_parts(model), max(tokens.ids) + 1)
    model = apply_tuning(model, family_of(model.config), tuning, new_tokens=tokens).train()
    if checkpointing:
        enable_checkpointing(model, family_of(model.config))
    head = SupervisedHead(model, reads=False)
    inputs = dict(batch)
    positions = inputs.pop("supervised_positions")
    targets = gather_targets(inputs.pop("labels"), positions)

    def step() -> None:
        with head.on(positions, targets):
            outputs = model(**inputs)
        loss = head.losses(outputs.logits, targets).sum() / positions.numel()
        del outputs
        loss.backward()

    gc.disable()  # when it collects cycles that hold tensors is chance
    try:
        return highest_on_cpu(step)
    finally:
        gc.enable()


@pytest.fixture(scope="module")
def traced(model_folder: Callable[[str], Path]) -> Callable[[str], StepTrace]:
    """Return the trace of a family's step with LoRA, made once for all that is looked at in it."""
    return cache(lambda name: simulated(model_folder(name), rows_of(model_folder(name)), TuningConfig(), False))


@pytest.mark.parametrize("name", FAMILIES)
def test_simulated_peak_is_the_allocators(
    name: str, model_folder: Callable[[str], Path], traced: Callable[[str], StepTrace]
) -> None:
    folder = model_folder(name)
    found = measured(folder, rows_of(folder), TuningConfig(), False)
    assert peak_of(traced(name)) == pytest.approx(found, rel=TOLERANCE, abs=RANDOM_STATES)


@pytest.mark.parametrize(
    ("tuning", "checkpointing"), [(TuningConfig(), True), (FULL, False)], ids=["lora-checkpointing", "full"]
)
@pytest.mark.parametrize("name", [*FEW, *UNLIKE] if IS_5 else FEW)
def test_simulated_peak_with_checkpointing_and_of_full_weights(
    name: str, tuning: TuningConfig, checkpointing: bool, model_folder: Callable[[str], Path]
) -> None:
    folder = model_folder(name)
    batch = rows_of(folder)
    predicted = peak_of(simulated(folder, batch, tuning, checkpointing))
    assert predicted == pytest.approx(measured(folder, batch, tuning, checkpointing), rel=TOLERANCE, abs=RANDOM_STATES)


@pytest.mark.parametrize("name", ["gemma3", "llava"])
def test_copies_of_tables_with_rows_of_new_tokens_are_counted(
    name: str, model_folder: Callable[[str], Path], traced: Callable[[str], StepTrace]
) -> None:
    """Gemma 3's head is tied, LLaVA's is not. Of a large vocabulary each copy is as large as the table."""
    folder = model_folder(name)
    rows, width = load_plainly(folder)[1].get_input_embeddings().weight.shape
    tokens = NewTokens(ids=(20_000,), pieces=((5, 6),))
    found = measured(folder, rows_of(folder), TuningConfig(), False, tokens)
    predicted = peak_of(simulated(folder, rows_of(folder), TuningConfig(), False, tokens=tokens))
    assert predicted == pytest.approx(found, rel=TOLERANCE, abs=RANDOM_STATES)
    assert predicted - peak_of(traced(name)) > (20_001 - rows) * width * 4  # the control


@pytest.mark.parametrize("name", FAMILIES)
def test_simulated_weights_are_the_models(
    name: str, model_folder: Callable[[str], Path], traced: Callable[[str], StepTrace]
) -> None:
    """No weight was read, and yet names, shapes and what is trained are those of the loaded model."""
    check_weights(model_folder(name), TuningConfig(), traced(name))


@pytest.mark.parametrize("name", FEW)
def test_simulated_weights_with_lora_everywhere(name: str, model_folder: Callable[[str], Path]) -> None:
    folder, tuning = model_folder(name), TuningConfig(lora_targets="all")
    check_weights(folder, tuning, simulated(folder, rows_of(folder), tuning, False))


def check_weights(folder: Path, tuning: TuningConfig, trace: StepTrace) -> None:
    _, model = load_plainly(folder)
    model = apply_tuning(model, family_of(model.config), tuning)
    expected = {
        parameter_name.removeprefix("base_model.model."): (tuple(parameter.shape), parameter.requires_grad)
        for parameter_name, parameter in model.named_parameters()
    }
    assert {weight.name: (weight.shape, weight.trained) for weight in trace.weights} == expected
    assert sum(weight.bytes for weight in trace.weights) == storage_bytes(model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_weights_that_4_bits_would_hold_are_those_that_are_quantized(
    name: str, model_folder: Callable[[str], Path], traced: Callable[[str], StepTrace]
) -> None:
    remote = name == "phi3_v"
    config = AutoConfig.from_pretrained(model_folder(name), trust_remote_code=remote)
    layers = find_layers(config, trust_remote_code=remote)
    held = {weight.name.replace(".base_layer", "") for weight in traced(name).weights if weight.quantizable}
    assert held == {f"{layer}.weight" for layer in layers.quantized}


def test_tolerance_would_show_forgotten_checkpointing(model_folder: Callable[[str], Path]) -> None:
    folder = model_folder("qwen2_5_vl")
    batch = rows_of(folder)
    wrong = peak_of(simulated(folder, batch, TuningConfig(), True))
    assert wrong < 0.8 * measured(folder, batch, TuningConfig(), False)


@pytest.mark.parametrize(
    ("name", "dtype", "published"),
    [
        ("gemma3", "float32", "bfloat16"),
        ("gemma3", "bfloat16", "float32"),
        ("qwen2_5_vl", "float32", "bfloat16"),
        ("llava", "bfloat16", "float32"),
    ],
)
def test_weights_have_the_runs_dtype_and_not_the_files(
    name: str, dtype: str, published: str, model_folder: Callable[[str], Path]
) -> None:
    folder = model_folder(name)
    precision = Precision(weights=dtype, autocast=None if dtype == "float32" else dtype)
    trace = simulated(folder, rows_of(folder), FULL, False, precision=precision, published=getattr(torch, published))
    assert {weight.bytes // weight.elements for weight in trace.weights} == {4 if dtype == "float32" else 2}


def test_an_engines_cast_reaches_every_weight(model_folder: Callable[[str], Path]) -> None:
    folder = model_folder("qwen2_5_vl")
    whole = Precision(weights="bfloat16", adapter="bfloat16")
    trace = simulated(folder, rows_of(folder), TuningConfig(), False, precision=whole)
    assert {weight.bytes // weight.elements for weight in trace.weights} == {2}


@pytest.mark.parametrize("name", FEW)
def test_large_models_and_masks_are_never_computed(
    name: str,
    model_folder: Callable[[str], Path],
    traced: Callable[[str], StepTrace],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the limit below every weight and mask, as in a model of real size, the peak stays the same."""
    folder, expected = model_folder(name), peak_of(traced(name))
    monkeypatch.setattr(simulation, "REAL_ELEMENTS", 1024)
    assert peak_of(simulated(folder, rows_of(folder), TuningConfig(), False)) == pytest.approx(expected, rel=TOLERANCE)
