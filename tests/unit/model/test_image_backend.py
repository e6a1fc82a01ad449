"""`--image_backend auto`: what a training recorded wins, then the table of families, and the reason is said."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vlm_lora.compat import image_backend
from vlm_lora.config.run_config import ModelConfig, RunConfig
from vlm_lora.errors import ConfigError
from vlm_lora.model.loading import load_processor, with_image_backend
from vlm_lora.model.processor.image_backend import settle_backend


def settled(model_type: str, given: str = "auto", place: str = "org/model", **known: Any) -> str:
    model = ModelConfig(model_name_or_path=place, image_backend=given)
    known = {"adapter": False, **known}
    return settle_backend(model, SimpleNamespace(model_type=model_type), **known).image_backend


def test_the_table_says_which_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert settled("gemma3") == "torchvision"
    assert "Image backend: torchvision, which is faster and gives equal pixels for gemma3 in all" in caplog.text
    assert settled("idefics3") == "pil"
    assert "Image backend: pil, as torchvision's pixels for idefics3 differ between versions" in caplog.text
    assert settled("unheard_of") == "pil"
    assert "torchvision's pixels were not compared for unheard_of" in caplog.text
    assert settled("gemma3", checkpoint="pil") == "pil"
    assert "Image backend: pil, as in the run of the checkpoint (--image_backend auto)." in caplog.text
    caplog.clear()
    assert [settled("gemma3", "pil"), settled("idefics3", "torchvision")] == ["pil", "torchvision"]
    assert caplog.text == ""


def test_where_torchvision_is_not_installed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("vlm_lora.model.processor.image_backend.has_torchvision", lambda: False)
    assert settled("gemma3") == "pil"
    assert "Image backend: pil, as torchvision, which is faster, is not installed here" in caplog.text
    assert settled("idefics3") == settled("gemma3", "pil") == "pil"
    with pytest.raises(ConfigError, match=r"--image_backend torchvision: .* not installed.*pip install torchvision"):
        settled("gemma3", "torchvision")
    with pytest.raises(ConfigError, match=r"auto: torchvision, as in the run of the checkpoint, and it is not instal"):
        settled("gemma3", checkpoint="torchvision")


@pytest.mark.parametrize(
    ("record", "content", "trained"),
    [
        ("run_config.yaml", "image_backend: torchvision\n", "torchvision"),
        ("run_config.yaml", "image_backend: pil\n", "pil"),
        ("run_config.yaml", "learning_rate: 0.1\n", "pil"),
        ("run_settings.json", json.dumps({"settings": {"image_backend": "torchvision"}}), "torchvision"),
        ("run_settings.json", json.dumps({"settings": {}}), "pil"),
        (None, "", "pil"),
    ],
)
def test_an_adapter_keeps_what_it_was_trained_with(
    record: str | None,
    content: str,
    trained: str,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of earlier versions and without a record that is pil, whatever the table says of its family."""
    base = str(model_folder("gemma3"))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    save_file({"weight": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    if record is not None:
        (tmp_path / record).write_text(content, encoding="utf-8")
    adapter = ModelConfig(model_name_or_path=str(tmp_path))
    assert image_backend(load_processor(adapter).image_processor) == trained
    assert with_image_backend(RunConfig(model=adapter), checkpoint=None).model.image_backend == trained
    assert image_backend(load_processor(ModelConfig(model_name_or_path=base)).image_processor) == "torchvision"
    caplog.clear()
    other = "pil" if trained == "torchvision" else "torchvision"
    chosen = load_processor(ModelConfig(model_name_or_path=str(tmp_path), image_backend=other))
    assert image_backend(chosen.image_processor) == other
    assert f"--image_backend {other}: {tmp_path} was trained with {trained}" in caplog.text
