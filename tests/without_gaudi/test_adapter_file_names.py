"""Adapters of models whose right names PEFT rewrites while it loads: every layer is found again, or gets no LoRA."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from support.families.folders import build_folder
from vlm_lora.config.run_config import TuningConfig
from vlm_lora.errors import ConfigError
from vlm_lora.model.adapters.file_names import names_in_file
from vlm_lora.model.adapters.targets import resolve_targets
from vlm_lora.model.families import family_of
from vlm_lora.model.loading import load_adapter
from vlm_lora.model.parts import find_parts
from vlm_lora.model.tuning import apply_tuning

IDS = torch.tensor([[7, 31, 12, 55]])
SHARED = "base_model.model.model.language_model.layers.1.{}shared_experts.up_proj.lora_B.weight"


def loaded(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return logits


def test_a_tensor_is_saved_under_the_name_that_peft_rewrites_to_the_right_one(tmp_path: Path) -> None:
    """Mistral Large 4's `shared_experts` becomes `mlp.shared_experts`, also where `mlp.` is there already."""
    folder = build_folder("mistral_large4", tmp_path / "model")
    model = loaded(folder)
    tuned = apply_tuning(model, family_of(model.config), TuningConfig(lora_rank=2))
    with torch.no_grad():
        for name, tensor in tuned.named_parameters():
            if "lora_B" in name:
                tensor.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    ours = logits_of(tuned.eval())
    tuned.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    names = set(load_file(path))
    assert SHARED.format("") in names
    assert SHARED.format("mlp.") not in names
    for load in (PeftModel.from_pretrained, load_adapter):
        assert torch.equal(logits_of(load(loaded(folder), tmp_path / "adapter").eval()), ours)
    # The control: under the names of the modules themselves PEFT leaves those layers as they began.
    save_file({name.replace(".1.shared", ".1.mlp.shared"): one for name, one in load_file(path).items()}, path)
    with pytest.warns(UserWarning, match="missing adapter keys"):
        other = PeftModel.from_pretrained(loaded(folder), tmp_path / "adapter").eval()
    assert not torch.allclose(logits_of(other), ours, atol=1e-3)


def test_layers_that_are_found_under_no_name_get_no_lora(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Inkling 2's `sconv.weight_proj` becomes `sconv.weight_proj.weight`, whatever follows."""
    model = loaded(build_folder("inkling2", tmp_path / "model"))
    parts = find_parts(model)
    lost = [name for name, _ in model.named_modules() if name.endswith("sconv.weight_proj")]
    assert lost
    caplog.set_level(logging.WARNING, logger="vlm_lora.model.adapters.targets")
    chosen = resolve_targets(model, parts, "language").modules
    assert set(lost) & set(chosen) == set()
    assert f"LoRA leaves out {len(lost)} of {len(chosen) + len(lost)} layers, such as {lost[0]}: " in caplog.text
    with pytest.raises(ConfigError, match="would not find LoRA on any of these layers again"):
        resolve_targets(model, parts, "weight_proj")


def test_names_of_most_models_stay_as_they_are(tmp_path: Path) -> None:
    model = loaded(build_folder("aya_vision", tmp_path / "model"))
    tuned = apply_tuning(model, family_of(model.config), TuningConfig(lora_targets="all"))
    names = [f"{name.replace('.default', '')}" for name, p in tuned.named_parameters() if p.requires_grad]
    assert names_in_file(tuned, names) == dict(zip(names, names, strict=True))
    assert "save_pretrained" not in vars(tuned)
