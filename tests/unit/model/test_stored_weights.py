"""Bases in few bits are described as what they are, and refused by name where they cannot be used."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest

from vlm_lora.backend import Traits
from vlm_lora.config.run_config import ModelConfig, RunConfig, TuningConfig
from vlm_lora.errors import BackendError, ConfigError, ModelError, UserError
from vlm_lora.memory.plan import NF4_BITS, NF4_DOUBLE_BITS, weight_bits
from vlm_lora.model.stored_checks import check_stored, describe_methods
from vlm_lora.model.stored_weights import METHODS, say_stored, stored_weights, unpacking

BNB4: dict[str, Any] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
BNB8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
PACKED = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}
RUN = RunConfig(model=ModelConfig(model_name_or_path="some/base"))


def base(stored: Any) -> Any:
    return SimpleNamespace(quantization_config=stored)


def backend(*kinds: str) -> Any:
    return SimpleNamespace(name="mycard", traits=Traits(static_shapes=False, quantization=kinds))


@pytest.fixture
def everything_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr("vlm_lora.model.stored_checks.IS_5", True)


@pytest.mark.parametrize(
    ("stored", "words", "stays"),
    [
        (BNB4, "4 bits by bitsandbytes", True),
        ({"load_in_8bit": True}, "8 bits by bitsandbytes", True),
        ({"quant_method": "gptq", "bits": 4}, "4 bits by gptq", True),
        (FP8, "8 bits by fp8", False),
        (PACKED, "4 bits by compressed-tensors", False),
        ({"quant_method": "hqq"}, "few bits by hqq", True),
        (SimpleNamespace(to_dict=lambda: {"quant_method": "QuantizationMethod.AWQ", "bits": 4}), "4 bits by awq", True),
    ],
)
def test_what_is_said_of_a_base(stored: Any, words: str, stays: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        say_stored(base(stored))
    assert f"the base is stored in {words}" in caplog.text
    assert ("and stays so" in caplog.text) is stays
    assert ("are unpacked while they are loaded" in caplog.text) is not stays


def test_a_base_of_whole_weights_is_not_spoken_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        say_stored(SimpleNamespace())
    check_stored(RUN, SimpleNamespace(), backend(), trains=True, partitioned="FSDP")
    assert caplog.text == ""


@pytest.mark.usefixtures("everything_installed")
@pytest.mark.parametrize("stored", [BNB4, BNB8, FP8, PACKED])
def test_what_goes_together_passes(stored: Any) -> None:
    check_stored(RUN, base(stored), backend("nf4"), trains=True)
    full = RunConfig(model=RUN.model, tuning=TuningConfig(peft_method="none"))
    check_stored(full, base(stored), backend("nf4"), trains=False)
    if stored in (FP8, PACKED):  # whole once they are loaded
        check_stored(full, base(stored), backend(), trains=True, partitioned="FSDP")


def changed(**tuning: Any) -> RunConfig:
    return RunConfig(model=RUN.model, tuning=TuningConfig(**tuning))


@pytest.mark.usefixtures("everything_installed")
@pytest.mark.parametrize(
    ("run", "stored", "hardware", "partitioned", "kind", "said"),
    [
        (RUN, BNB8, backend(), "", BackendError, "8 bits by bitsandbytes, with which the mycard backend does not"),
        (
            RUN,
            BNB4,
            backend("nf4"),
            "ZeRO-3",
            ConfigError,
            "4 bits by bitsandbytes, and with ZeRO-3.*--deepspeed zero2",
        ),
        (changed(peft_method="none"), BNB4, backend("nf4"), "", ConfigError, "--peft_method none.*--peft_method lora"),
        (changed(lora_init="orthogonal"), BNB8, backend("nf4"), "", ConfigError, "--lora_init orthogonal.*gaussian"),
        (RUN, {"quant_method": "gptq", "bits": 4}, backend("nf4"), "", ModelError, "4 bits by gptq, on which no LoRA"),
        (RUN, {"quant_method": "awq", "bits": 4}, backend("nf4"), "", ModelError, "4 bits by awq, on which no LoRA"),
        (RUN, {"quant_method": "brandnew"}, backend("nf4"), "", ModelError, "by brandnew; the installed transformers"),
        (RUN, {"bits": 3}, backend("nf4"), "", ModelError, "by a method that it does not name; the installed"),
        (
            RunConfig(model=ModelConfig(model_name_or_path="some/base", load_in_4bit=True)),
            FP8,
            backend("nf4"),
            "",
            ConfigError,
            r"--load_in_4bit: this base is stored quantized .8 bits by fp8.*Leave --load_in_4bit out",
        ),
    ],
)
def test_refusals(
    run: RunConfig, stored: Any, hardware: Any, partitioned: str, kind: type[UserError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        check_stored(run, base(stored), hardware, trains=True, partitioned=partitioned)


@pytest.mark.parametrize(
    ("stored", "trains", "packages"),
    [
        (BNB4, True, "bitsandbytes"),
        (PACKED, True, "compressed-tensors"),
        ({"quant_method": "gptq", "bits": 4}, False, "optimum gptqmodel"),
    ],
)
def test_a_missing_package_is_named(stored: Any, trains: bool, packages: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=f"not installed: pip install {packages}\\. Or give the base"):
        check_stored(RUN, base(stored), backend("nf4"), trains=trains)


def test_transformers_4_unpacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm_lora.model.stored_checks.IS_5", False)
    with pytest.raises(ModelError, match="8 bits by fp8, which transformers 5 unpacks"):
        check_stored(RUN, base(FP8), backend("nf4"), trains=True)


def test_unpacking_is_asked_for_where_it_is_meant() -> None:
    assert unpacking(base(FP8)).quantization_config == {**FP8, "dequantize": True}
    assert unpacking(base(BNB4)).quantization_config == BNB4
    assert not hasattr(unpacking(SimpleNamespace()), "quantization_config")


@pytest.mark.parametrize(
    ("stored", "bits"),
    [(BNB4, NF4_BITS), ({**BNB4, "bnb_4bit_use_double_quant": True}, NF4_DOUBLE_BITS), (BNB8, 8.0), (FP8, None)],
)
def test_the_plan_counts_what_stays_in_few_bits(stored: Any, bits: float | None) -> None:
    assert weight_bits(RUN.model, base(stored)) == bits
    assert stored_weights(SimpleNamespace()) is None
    assert weight_bits(RUN.model, SimpleNamespace()) is None


def test_what_becomes_of_each_method_here_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(describe_methods()) == set(METHODS)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gptqmodel" else name)
    monkeypatch.setattr("vlm_lora.model.stored_checks.IS_5", True)
    found = describe_methods()
    assert found["bitsandbytes"] == "LoRA trains on it as it is, with backends that take --load_in_4bit"
    assert found["fp8"] == "unpacked, then LoRA trains on it"
    assert found["gptq"] == "nothing trains on it; needs pip install gptqmodel"
    monkeypatch.setattr("vlm_lora.model.stored_checks.IS_5", False)
    assert "not read with transformers" in describe_methods()["fp8"]
