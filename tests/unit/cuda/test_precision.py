"""Every combination of precision flags on every kind of device: one line says what is done, or one why it is not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from support.tiny.batches import build_batch, load_plainly, next_token_loss
from vlm_lora.config.run_config import ModelConfig, RunConfig, TuningConfig
from vlm_lora.errors import ConfigError
from vlm_lora.model.families import family_of
from vlm_lora.model.tuning import apply_tuning
from vlm_lora_cuda import CudaBackend
from vlm_lora_torch.precision import Card, check_precision, choose_dtype, choose_precision

H200 = Card(name="NVIDIA H200", capability=(9, 0), bf16=True)
T4 = Card(name="Tesla T4", capability=(7, 5), bf16=False)
CPU = None


@pytest.mark.parametrize(
    ("values", "gpu", "chosen", "said"),
    [
        ({}, H200, {"bf16": True}, "bf16 autocast, because this GPU computes in bf16 (--bf16 false for fp32)."),
        ({}, T4, {}, "fp32, because this GPU has no bf16 (--fp16 for half precision with a loss scaler)."),
        ({}, CPU, {}, "fp32, because the CPU is exact and fastest in it."),
        ({"bf16": True}, H200, {}, "bf16 autocast, because --bf16 says so."),
        ({"bf16": True}, CPU, {}, "bf16 autocast, because --bf16 says so."),
        ({"fp16": True}, T4, {}, "fp16 autocast, with a loss scaler, because --fp16 says so."),
        ({"bf16": False}, H200, {}, "fp32, because --bf16 false says so."),
        ({"bf16": False, "fp16": True}, H200, {}, "fp16 autocast, with a loss scaler, because --fp16 says so."),
        ({"bf16": False}, CPU, {}, "fp32, because --bf16 false says so."),
        (
            {"bf16": False, "tf32": True},
            H200,
            {},
            "fp32, because --bf16 false says so; products of fp32 tensors in tf32 (--tf32).",
        ),
        (
            {"tf32": False},
            H200,
            {"bf16": True},
            "bf16 autocast, because this GPU computes in bf16 (--bf16 false for fp32); "
            "products of fp32 tensors exact (--tf32).",
        ),
        (
            {"bf16_full_eval": True},
            CPU,
            {},
            "fp32, because the CPU is exact and fastest in it; evaluation with all weights in bf16 (--bf16_full_eval).",
        ),
        (
            {"fp16": True, "fp16_full_eval": True},
            T4,
            {},
            "fp16 autocast, with a loss scaler, because --fp16 says so; "
            "evaluation with all weights in fp16 (--fp16_full_eval).",
        ),
    ],
)
def test_one_line_says_what_will_be_done(
    values: dict[str, bool], gpu: Card | None, chosen: dict[str, bool], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    check_precision(values, gpu)
    with caplog.at_level(logging.INFO):
        assert choose_precision(values, gpu) == chosen
    assert caplog.messages == [f"Precision: {said}"]


def test_deepspeed_casts_weights_instead(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        choose_precision({"bf16": True}, H200, by_deepspeed=True)
    assert caplog.messages == [
        "Precision: bf16 weights by DeepSpeed, fp32 copies of what trains in its optimizer, because --bf16 says so."
    ]


@pytest.mark.parametrize(
    ("values", "gpu", "message"),
    [
        ({"fp16": True, "bf16": True}, H200, "--fp16 and --bf16 were both given"),
        ({"fp16_full_eval": True, "bf16_full_eval": True}, H200, "--fp16_full_eval and --bf16_full_eval"),
        ({"bf16": True, "fp16_full_eval": True}, H200, "--bf16 and --fp16_full_eval"),
        ({"fp16": True, "bf16_full_eval": True}, H200, "--fp16 and --bf16_full_eval"),
        ({"fp16": True}, CPU, "--fp16 needs a CUDA GPU and this run is on the CPU.*--bf16"),
        ({"fp16_full_eval": True}, CPU, "--fp16_full_eval needs a CUDA GPU"),
        ({"tf32": True}, CPU, "--tf32 needs a CUDA GPU"),
        ({"tf32": True}, T4, r"--tf32: Tesla T4 has compute capability 7\.5.*no tf32"),
        ({"bf16": True}, T4, r"--bf16: Tesla T4 has compute capability 7\.5.*no bf16.*--fp16"),
        ({"bf16_full_eval": True}, T4, "--bf16_full_eval: Tesla T4.*--fp16_full_eval"),
    ],
)
def test_refusals(values: dict[str, bool], gpu: Card | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_precision(values, gpu)


def test_the_facts_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    # torch calls emulated bf16 supported; it is many times slower than fp32.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert CudaBackend().card() == T4


LORA, FULL = TuningConfig(), TuningConfig(peft_method="none")
PUBLISHED_16 = SimpleNamespace(dtype=torch.float16)
PUBLISHED_BF = SimpleNamespace(torch_dtype="bfloat16")


@pytest.mark.parametrize(
    ("tuning", "flags", "config", "on_card", "dtype"),
    [
        (LORA, {"bf16": True}, PUBLISHED_BF, True, torch.bfloat16),
        (LORA, {"fp16": True}, PUBLISHED_16, True, torch.float16),
        (LORA, {"fp16": True}, PUBLISHED_BF, True, torch.float32),
        (LORA, {}, PUBLISHED_BF, True, torch.float32),
        (LORA, {"bf16": True}, PUBLISHED_BF, False, torch.float32),
        (FULL, {"bf16": True}, PUBLISHED_BF, True, torch.float32),
        (FULL, {"fp16": True}, PUBLISHED_16, True, torch.float32),
        (FULL, {}, PUBLISHED_16, False, torch.float32),
    ],
)
def test_dtype_of_the_weights(
    tuning: TuningConfig, flags: dict[str, bool], config: Any, on_card: bool, dtype: torch.dtype
) -> None:
    arguments: Any = SimpleNamespace(**{"bf16": False, "fp16": False, "do_train": True, **flags})
    assert choose_dtype(RunConfig(tuning=tuning), config, arguments, on_card=on_card) == dtype


def test_float16_weights_are_never_trained(caplog: pytest.LogCaptureFixture) -> None:
    arguments: Any = SimpleNamespace(bf16=False, fp16=True, do_train=True)
    asked = RunConfig(model=ModelConfig(dtype="float16"), tuning=FULL)
    with pytest.raises(ConfigError, match=r"--dtype float16 with --peft_method none.*--dtype float32, with --fp16"):
        choose_dtype(asked, PUBLISHED_16, arguments, on_card=True)
    arguments.do_train = False
    assert choose_dtype(asked, PUBLISHED_16, arguments, on_card=True) == torch.float16
    arguments.do_train = True
    rough = RunConfig(model=ModelConfig(dtype="bfloat16"), tuning=FULL)
    assert choose_dtype(rough, PUBLISHED_BF, arguments, on_card=True) == torch.bfloat16
    assert "changes below 1/256 of a weight are lost" in caplog.text


def test_the_scaler_takes_lora_on_a_float16_base_and_not_float16_weights(
    model_folder: Callable[[str], Path],
) -> None:
    processor, model = load_plainly(model_folder("llava"))
    tuned = apply_tuning(model.to(torch.float16), family_of(model.config), TuningConfig(lora_rank=2)).train()
    batch = {name: t.half() if t.is_floating_point() else t for name, t in build_batch(processor).items()}
    scaler = torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=1e-3)
    scaler.scale(next_token_loss(tuned, batch)).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert any(p.grad is not None and p.grad.any() for p in tuned.parameters())
    # The control: weights that are float16 themselves.
    head = model.get_output_embeddings().weight.requires_grad_(True)
    scaler = torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD([head], lr=1e-3)
    scaler.scale(next_token_loss(model, batch)).backward()
    with pytest.raises(ValueError, match="Attempting to unscale FP16 gradients"):
        scaler.unscale_(optimizer)
