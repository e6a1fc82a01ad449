"""Numbers in a DeepSpeed file: the run's where nobody typed them, refused where another was set."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vlm_lora.engines.zero import ready_made, zero_settings
from vlm_lora.engines.zero_numbers import agreeing_schedule, check_numbers, with_file_numbers
from vlm_lora.errors import ConfigError

FIXED: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 0.5,
    "optimizer": {"type": "AdamW", "params": {"lr": 2e-5, "betas": [0.9, 0.95], "eps": 1e-7, "weight_decay": 0.01}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 2e-5}},
}
MEANING = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 0.5,
    "learning_rate": 2e-5,
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "adam_epsilon": 1e-7,
    "weight_decay": 0.01,
}


def test_what_was_not_typed_is_taken_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        values = with_file_numbers({"deepspeed": FIXED, "seed": 3})
    assert values == {"deepspeed": FIXED, "seed": 3, **MEANING}
    assert "--per_device_train_batch_size 4" in caplog.text
    assert "--learning_rate 2e-05" in caplog.text


def test_what_was_typed_stays() -> None:
    typed = {"deepspeed": FIXED, "learning_rate": 1e-4, "max_grad_norm": 1.0, "adam_beta1": 0.8}
    assert with_file_numbers(typed) == {**MEANING, **typed}


@pytest.mark.parametrize("values", [{}, {"deepspeed": "zero2"}, {"deepspeed": ready_made("zero3")}])
def test_auto_and_no_engine_give_nothing(values: dict[str, Any]) -> None:
    assert with_file_numbers(values) == values


def test_the_file_of_accelerates_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(FIXED), encoding="utf-8")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    assert with_file_numbers({}) == {}, "the launcher was not told to use DeepSpeed"
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert with_file_numbers({}) == MEANING


def arguments(settings: dict[str, Any], **more: Any) -> Any:
    plugin = SimpleNamespace(deepspeed_config=settings)
    return SimpleNamespace(**{**MEANING, "world_size": 2, "deepspeed_plugin": plugin, **more})


def test_numbers_that_agree_pass() -> None:
    check_numbers(arguments({**FIXED, "train_batch_size": 16}))
    check_numbers(arguments({"train_batch_size": "auto"}))
    check_numbers(SimpleNamespace(deepspeed_plugin=None))


@pytest.mark.parametrize(
    ("settings", "typed", "words"),
    [
        (FIXED, {"per_device_train_batch_size": 1}, ('"train_micro_batch_size_per_gpu" 4 there', "batch_size 1 here")),
        (FIXED, {"max_grad_norm": 1.0}, ('"gradient_clipping" 0.5 there, --max_grad_norm 1.0 here',)),
        (FIXED, {"learning_rate": 1e-4}, ('"optimizer.params.lr" 2e-05 there', '"scheduler.params.warmup_max_lr"')),
        (FIXED, {"adam_beta2": 0.999}, ("[0.9, 0.95] there, --adam_beta1 and --adam_beta2 [0.9, 0.999] here",)),
        ({"train_batch_size": 64}, {}, ('"train_batch_size" 64 there', "processes = 16 here")),
    ],
)
def test_numbers_that_differ_are_named(settings: dict[str, Any], typed: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_numbers(arguments(settings, **typed))
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_is_silent_about_accumulation_takes_the_flags() -> None:
    assert zero_settings({}, bf16=False)["gradient_accumulation_steps"] == "auto"
    assert zero_settings(FIXED, bf16=False)["gradient_accumulation_steps"] == 2


def test_steps_that_are_known_late() -> None:
    said = "config values that mismatch TrainingArguments values:\n- ds scheduler.params.total_num_steps=7 vs hf n=3\nx"
    found = pytest.raises(ConfigError, match=r"differ: scheduler.params.total_num_steps=7, here n=3\.")
    with found, agreeing_schedule():
        raise ValueError(said)
    with pytest.raises(ValueError, match="another"), agreeing_schedule():
        raise ValueError("another")
