"""What `accelerate launch` says about precision counts as typed, and the log says what runs."""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest

from vlm_lora.config.run_config import RunConfig
from vlm_lora.engines.precision import VARIABLE, launched_precision, launchers_own
from vlm_lora.errors import ConfigError
from vlm_lora_torch import TorchBackend
from vlm_lora_torch.precision import Card, check_precision, choose_precision

A100 = Card(name="A100", capability=(8, 0), bf16=True)
T4 = Card(name="Tesla T4", capability=(7, 5), bf16=False)


@pytest.mark.parametrize(
    ("word", "values", "flag"),
    [
        (None, {}, None),
        ("no", {"bf16": True}, None),
        ("no", {"bf16": False}, None),
        ("bf16", {}, "bf16"),
        ("bf16", {"bf16": True, "fp16": False}, "bf16"),
        ("fp16", {"bf16": None}, "fp16"),
        ("fp16", {"bf16": False}, "fp16"),
    ],
)
def test_the_launchers_word(word: str | None, values: dict[str, Any], flag: str | None) -> None:
    assert launched_precision(values, {} if word is None else {VARIABLE: word}) == flag


@pytest.mark.parametrize(
    ("word", "values", "message"),
    [
        ("bf16", {"bf16": False}, "mixed_precision bf16 .* and --bf16 false contradict"),
        ("bf16", {"fp16": True}, "mixed_precision bf16 .* and --fp16 contradict"),
        ("fp16", {"fp16": False}, "mixed_precision fp16 .* and --fp16 false contradict"),
        ("fp16", {"bf16": True}, "mixed_precision fp16 .* and --bf16 contradict"),
        ("fp8", {}, "mixed_precision fp8 .* allowed are no, bf16, fp16"),
    ],
)
def test_a_contradiction_names_both(word: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        launched_precision(values, {VARIABLE: word})


@pytest.mark.parametrize(("gpu", "word"), [(A100, "fp16"), (T4, "fp16"), (A100, "bf16"), (None, "bf16")])
def test_it_is_chosen_and_said(gpu: Card | None, word: str, caplog: pytest.LogCaptureFixture) -> None:
    check_precision({}, gpu, launched=word)
    with caplog.at_level(logging.INFO):
        assert choose_precision({}, gpu, launched=word) == {word: True}
    assert caplog.messages[0].startswith(f"Precision: {word} autocast")
    assert f"because accelerate launch's mixed_precision {word} ({VARIABLE}) says so" in caplog.messages[0]


@pytest.mark.parametrize(
    ("gpu", "word", "cure"), [(T4, "bf16", "mixed_precision fp16"), (None, "fp16", "mixed_precision no")]
)
def test_what_the_device_cannot_do_names_the_launcher(gpu: Card | None, word: str, cure: str) -> None:
    with pytest.raises(ConfigError, match=f"accelerate launch's mixed_precision {word} .*Start with {cure}"):
        check_precision({}, gpu, launched=word)


def test_the_arguments_of_a_run_on_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    values = {"output_dir": str(tmp_path), "use_cpu": True}
    monkeypatch.setenv(VARIABLE, "bf16")
    assert TorchBackend().arguments(RunConfig(), values).bf16
    with pytest.raises(ConfigError, match="--bf16 false contradict"):
        TorchBackend().arguments(RunConfig(), {**values, "bf16": False})
    monkeypatch.setenv(VARIABLE, "fp16")
    with pytest.raises(ConfigError, match=r"mixed_precision fp16 .* needs a CUDA GPU"):
        TorchBackend().arguments(RunConfig(), values)
    monkeypatch.setenv(VARIABLE, "no")
    assert not TorchBackend().arguments(RunConfig(), values).bf16


def test_one_runs_choice_is_not_the_launchers_for_the_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """transformers 4.55 writes its choice into the variable."""
    monkeypatch.delenv(VARIABLE, raising=False)
    values = {"output_dir": str(tmp_path), "use_cpu": True}
    assert TorchBackend().arguments(RunConfig(), {**values, "bf16": True}).bf16
    assert not TorchBackend().arguments(RunConfig(), {**values, "bf16": False}).bf16
    assert os.environ.get(VARIABLE, "no") == "no"
    written: dict[str, str] = {}
    with launchers_own(written):
        written[VARIABLE] = "bf16"
    assert launched_precision({"bf16": False}, written) is None
    with launchers_own(written):
        assert VARIABLE not in written
    with pytest.raises(ConfigError, match="contradict"):  # nobody's own choice but the launcher's
        launched_precision({"bf16": False}, {VARIABLE: "bf16"})
