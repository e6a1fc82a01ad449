"""`--load_in_4bit` is refused where it cannot be honoured, with the reason and before weights are loaded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vlm_lora.backend import Traits
from vlm_lora.config.run_config import ModelConfig, RunConfig, TuningConfig
from vlm_lora.config.sources import parse
from vlm_lora.errors import BackendError, ConfigError, UserError
from vlm_lora.model.quantization import check_request
from vlm_lora_cuda import CudaBackend
from vlm_lora_habana import HabanaBackend

ASKED = RunConfig(model=ModelConfig(load_in_4bit=True))


def arguments(**changes: Any) -> Any:
    fine = {"do_train": True, "fsdp": [], "deepspeed_plugin": None, "bf16_full_eval": False, "fp16_full_eval": False}
    return SimpleNamespace(**{**fine, **changes})


def zero(stage: int) -> Any:
    return SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": stage}})


def backend(*kinds: str) -> Any:
    return SimpleNamespace(name="mycard", traits=Traits(static_shapes=False, quantization=kinds))


def test_what_goes_together_passes() -> None:
    check_request(ASKED, CudaBackend(), arguments())
    check_request(ASKED, backend("nf4"), arguments(deepspeed_plugin=zero(2)))
    check_request(RunConfig(), backend(), arguments(fsdp=["full_shard"]))
    full = RunConfig(model=ModelConfig(load_in_4bit=True), tuning=TuningConfig(peft_method="none"))
    check_request(full, backend("nf4"), arguments(do_train=False))


@pytest.mark.parametrize(
    ("run", "hardware", "changes", "kind", "message"),
    [
        (ASKED, HabanaBackend(), {}, BackendError, "habana backend: quantizations it has: none.*LoRA on the 16-bit"),
        (ASKED, backend("fp4"), {}, BackendError, r"--load_in_4bit \(nf4\).*it has: fp4"),
        (ASKED, backend("nf4"), {"fsdp": ["full_shard"]}, ConfigError, "FSDP or ZeRO-3.*zero2.json"),
        (ASKED, backend("nf4"), {"deepspeed_plugin": zero(3)}, ConfigError, "FSDP or ZeRO-3.*zero2.json"),
        (ASKED, backend("nf4"), {"fp16_full_eval": True}, ConfigError, "--fp16_full_eval with --load_in_4bit"),
        (
            RunConfig(model=ModelConfig(load_in_4bit=True), tuning=TuningConfig(lora_init="pissa")),
            backend("nf4"),
            {},
            ConfigError,
            "--lora_init pissa with --load_in_4bit",
        ),
        (
            RunConfig(model=ModelConfig(load_in_4bit=True), tuning=TuningConfig(peft_method="none")),
            backend("nf4"),
            {},
            ConfigError,
            "--peft_method lora",
        ),
    ],
)
def test_refusals(run: RunConfig, hardware: Any, changes: Any, kind: type[UserError], message: str) -> None:
    with pytest.raises(kind, match=message):
        check_request(run, hardware, arguments(**changes))


def test_names_of_other_tools() -> None:
    words = "--load-in-4bit --bnb_4bit_quant_type fp4 --bnb_4bit_compute_dtype bfloat16 --use_bnb_nested_quant"
    model = parse(words.split(), environ={}).model
    assert model == ModelConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="fp4",
        bnb_4bit_compute_dtype="bfloat16",
        bnb_4bit_use_double_quant=True,
    )
    # A file that spells out a tool's defaults quantizes nothing.
    off = parse(["--load_in_4bit", "false", "--bnb_4bit_quant_type", "nf4"], environ={}).model
    assert off == ModelConfig()
