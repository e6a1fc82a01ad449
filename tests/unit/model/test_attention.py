"""Flash attention only where it computes what the model means, and to each part of a model what it supports."""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from support.tiny import available
from support.tiny.batches import build_batch, load_plainly
from vlm_lora.compat import IS_5
from vlm_lora.config.run_config import ModelConfig
from vlm_lora.errors import BackendError, ModelError
from vlm_lora.memory.request import simulated_attention
from vlm_lora.model.attention import FLASH, FLASH_3, FLASH_4, FLEX, by_part, check_attention, spoken
from vlm_lora.model.families import BOTH_DIRECTIONS, FAMILIES, family_of
from vlm_lora.model.loading import load_config, load_model
from vlm_lora.model.parts import decoder_layers, find_parts
from vlm_lora_torch import TorchBackend
from vlm_lora_torch.attention import choose_attention, note_missing_kernels
from vlm_lora_torch.kernels import missing_kernels

NAMES = available()
BOTH = {"gemma3", "gemma4", "paligemma"}
BFLOAT = torch.bfloat16
ON_THE_CPU = TorchBackend().flash_obstacle()


def config_of(folder: Path) -> Any:
    own = (folder / "modeling_phi3_v.py").exists()
    return load_config(ModelConfig(model_name_or_path=str(folder), trust_remote_code=own))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand for a machine that has the flash-attn package."""
    stand_in(monkeypatch, "flash-attn")


def stand_in(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Stand for a machine that has these packages with flash attention, and a transformers that knows all of them."""
    monkeypatch.setattr("vlm_lora_torch.attention.is_installed", lambda module, package: package in packages)
    monkeypatch.setattr("vlm_lora_torch.attention.known_attentions", lambda: {FLASH, FLASH_3, FLASH_4})


def looks_ahead(folder: Path) -> bool:
    """Say whether the first logits depend on what the decoder gets behind the middle of the image."""
    processor, model = load_plainly(folder)
    model.requires_grad_(False)
    batch = build_batch(processor)
    entered: list[torch.Tensor] = []

    def enter(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        states = (args[0] if args else kwargs["hidden_states"]).detach().requires_grad_()
        entered.append(states)
        return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

    first = model.get_submodule(decoder_layers(model, find_parts(model))[0])
    first.register_forward_pre_hook(enter, with_kwargs=True)
    ids: torch.Tensor = batch["input_ids"][0]
    token: Any = getattr(model.config, "image_token_id", None) or getattr(model.config, "image_token_index", None)
    places = ids.eq(-1 if token is None else token).nonzero().flatten()
    middle = int(places[len(places) // 2]) if len(places) > 1 else len(ids) // 2
    model(**batch).logits[0, :middle].float().pow(2).sum().backward()
    gradient = entered[0].grad
    assert gradient is not None
    assert gradient[..., :middle, :].any(), "the earlier logits depend on what entered"
    return bool(gradient[..., middle:, :].any())


@pytest.mark.parametrize("name", NAMES)
def test_the_table_says_who_looks_ahead(name: str, model_folder: Callable[[str], Path]) -> None:
    folder = model_folder(name)
    family = family_of(config_of(folder))
    ahead = looks_ahead(folder)
    assert ahead == (name in BOTH)
    assert family.both_directions == ahead
    assert not (ahead and family.flash_attention)


MASKED = re.compile(r"\b(or_mask_function|block_sequence_ids|token_type_ids_mask_function)\b")


def masks_by_functions(model_type: str) -> bool:
    """Say whether a model's code builds masks from more than lengths, which flash attention never reads."""
    package = Path(
        str(importlib.import_module(f"transformers.models.{model_type_to_module_name(model_type)}").__file__)
    )
    return any(MASKED.search(path.read_text(encoding="utf-8")) for path in package.parent.glob("modeling_*.py"))


def test_no_family_that_transformers_masks_by_functions_gets_flash_attention() -> None:
    found = {name for name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES if masks_by_functions(name)}
    assert "gemma3" in found, "the search finds what is known"
    assert "llava" not in found
    known = {name for name, family in FAMILIES.items() if family.both_directions} | BOTH_DIRECTIONS
    assert found <= known
    stranger: Any = SimpleNamespace(model_type="molmo2")
    assert not family_of(stranger).flash_attention
    assert family_of(SimpleNamespace(model_type="aria")).flash_attention


@pytest.mark.usefixtures("installed")
def test_auto_takes_sdpa_where_flash_would_be_causal(
    model_folder: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert choose_attention("auto", config_of(model_folder("gemma3")), BFLOAT, None) == "sdpa"
        assert choose_attention("auto", config_of(model_folder("llava")), BFLOAT, None) == FLASH
    assert "Attention: sdpa (no flash attention: the language model of gemma3 reads images" in caplog.messages[0]
    assert caplog.messages[1].startswith("Attention: flash_attention_2, because it is installed")


@pytest.mark.parametrize("asked", [FLASH, FLASH_3, "kernels-community/flash-attn"])
def test_flash_typed_for_it_is_refused(
    asked: str, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, "flash-attn", "flash-attn-3")
    config = config_of(model_folder("paligemma"))
    with pytest.raises((BackendError, ModelError), match=r"paligemma reads .* in both directions.*Type --attn_impl"):
        choose_attention(asked, config, BFLOAT, None)
    with pytest.raises(ModelError, match="in both directions"):
        check_attention(asked, config)  # as `plan` does, without a device
    check_attention(asked, config_of(model_folder("llava")))
    assert choose_attention(asked, config_of(model_folder("llava")), BFLOAT, None) == asked


EVERY = ("flash-attn", "flash-attn-3", "flash-attn-4")


@pytest.mark.parametrize(
    ("packages", "capability", "head", "expected"),
    [
        (EVERY, (9, 0), 128, FLASH_3),
        (("flash-attn", "flash-attn-4"), (9, 0), 128, FLASH_4),
        (EVERY, (10, 0), 128, FLASH_4),
        (EVERY, (10, 0), 256, FLASH),
        (EVERY, (8, 0), 128, FLASH),
        (("flash-attn-3",), (8, 0), 128, "sdpa"),
        (("flash-attn-4",), (9, 0), 256, "sdpa"),
        ((), (9, 0), 128, "sdpa"),
    ],
)
def test_auto_takes_the_flash_attention_that_the_device_has(
    packages: tuple[str, ...],
    capability: tuple[int, int],
    head: int,
    expected: str,
    model_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stand_in(monkeypatch, *packages)
    config = config_of(model_folder("llava"))
    config.text_config.head_dim = head
    with caplog.at_level(logging.INFO):
        assert choose_attention("auto", config, BFLOAT, None, capability) == expected
    assert f"Attention: {expected}" in caplog.text


@pytest.mark.parametrize(
    ("asked", "packages", "capability", "said"),
    [
        (FLASH_3, ("flash-attn",), (9, 0), "flash_attention_3 cannot be used: the package is not installed"),
        (FLASH_3, EVERY, (8, 0), "flash-attn-3 is not built for compute capability 8.0"),
        (FLASH_4, EVERY, (9, 0), "flash-attn-4 has no backward pass for heads of 256, more than 128"),
    ],
)
def test_a_flash_attention_that_is_typed_and_not_there_is_refused(
    asked: str,
    packages: tuple[str, ...],
    capability: tuple[int, int],
    said: str,
    model_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch, *packages)
    config = config_of(model_folder("llava"))
    config.text_config.head_dim = 256
    with pytest.raises(BackendError, match=said):
        choose_attention(asked, config, BFLOAT, None, capability)


def test_flex_attention_is_refused_on_the_cpu_and_never_taken_unasked(model_folder: Callable[[str], Path]) -> None:
    config = config_of(model_folder("llava"))
    with pytest.raises(BackendError, match="flex_attention cannot be used: torch has its backward pass on CUDA"):
        choose_attention(FLEX, config, torch.float32, ON_THE_CPU)
    assert choose_attention(FLEX, config, BFLOAT, None) == FLEX


@pytest.mark.parametrize(
    ("name", "packages"),
    [
        ("llava", ()),
        *([("lfm2_vl", ("causal-conv1d",)), ("qwen3_5", ("flash-linear-attention", "causal-conv1d"))] if IS_5 else []),
    ],
)
def test_packages_that_a_models_layers_ask_for_are_named(
    name: str,
    packages: tuple[str, ...],
    model_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = config_of(model_folder(name))
    assert missing_kernels(config) == packages
    note_missing_kernels(config)
    assert (f"To have them: pip install {' '.join(packages)}" in caplog.text) is bool(packages)
    monkeypatch.setattr("vlm_lora_torch.kernels.find_spec", lambda module: module)
    assert missing_kernels(config) == ()


@pytest.mark.parametrize("name", [name for name in NAMES if IS_5 or name != "gemma3n"])
def test_a_model_whose_parts_agree_gets_one_word(name: str, model_folder: Callable[[str], Path]) -> None:
    # A model's own code says itself what it supports; without a word of it, eager is what every model has.
    assert by_part(config_of(model_folder(name)), "sdpa") == ("eager" if name == "phi3_v" else "sdpa")


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tower without fused attention, as the audio tower of Gemma 4 and the tower of LFM2-VL are."""
    base = transformers.SiglipVisionModel.__mro__[1]
    for flag in ("_supports_sdpa", "_supports_flash_attn"):
        monkeypatch.setattr(base, flag, False)


@pytest.mark.usefixtures("lacking", "installed")
def test_each_part_gets_what_it_supports(model_folder: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    folder = model_folder("gemma3")
    config = config_of(folder)
    with caplog.at_level(logging.INFO):
        chosen = choose_attention("auto", config, torch.float32, ON_THE_CPU)
    assert caplog.messages[0].startswith("Attention: sdpa (vision_config: eager) (no flash attention")
    load_as_chosen(folder, chosen, {"text_config": "sdpa", "vision_config": "eager"})
    assert choose_attention("eager", config, torch.float32, ON_THE_CPU) == "eager"
    if not IS_5:  # transformers takes eager there for parts without sdpa
        assert choose_attention("sdpa", config, torch.float32, ON_THE_CPU) == "sdpa"
        return load_as_chosen(folder, "sdpa", {"text_config": "sdpa", "vision_config": "eager"})
    with pytest.raises(ModelError, match=r"sdpa: transformers has none for vision_config of gemma3.*auto"):
        choose_attention("sdpa", config, torch.float32, ON_THE_CPU)
    with pytest.raises(ModelError, match="gemma3"):
        load_as_chosen(folder, "sdpa", {})  # what transformers makes of one word for all
    return None


@pytest.mark.usefixtures("lacking", "installed")
def test_flash_for_the_parts_that_have_it(model_folder: Callable[[str], Path]) -> None:
    config = config_of(model_folder("llava_onevision"))
    chosen = choose_attention("auto", config, BFLOAT, None)
    assert chosen == {"": FLASH, "text_config": FLASH, "vision_config": "eager"}
    assert spoken(chosen) == "flash_attention_2 (vision_config: eager)"
    with pytest.raises(ModelError, match=r"flash_attention_2: transformers has none for vision_config"):
        choose_attention(FLASH, config, BFLOAT, None)


def load_as_chosen(folder: Path, chosen: Any, parts: dict[str, str]) -> None:
    """Load a folder with an attention, and compare its parts' with `parts` and with those of a simulated model."""
    keywords = {"torch_dtype": torch.float32, "attn_implementation": chosen}
    model = load_model(ModelConfig(model_name_or_path=str(folder)), model_kwargs=keywords)
    kind = transformers.AutoModelForImageTextToText
    planned = kind.from_config(config_of(folder), attn_implementation=simulated_attention("auto"))
    for part, word in parts.items():
        for each in (model, planned):
            module = next(m for m in each.modules() if getattr(m, "config", None) is getattr(each.config, part))
            assert module.config._attn_implementation == word, part


PUBLISHED = {
    "gemma3n": {"": FLASH, "text_config": FLASH, "vision_config": "sdpa" if IS_5 else "eager"},
    "lfm2_vl": {"": FLASH, "text_config": FLASH, "vision_config": "sdpa"},
}


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", [name for name in PUBLISHED if name in NAMES])
def test_published_towers_without_flash(name: str, model_folder: Callable[[str], Path]) -> None:
    chosen = choose_attention("auto", config_of(model_folder(name)), BFLOAT, None)
    assert isinstance(chosen, dict)
    assert {part: chosen[part] for part in PUBLISHED[name]} == PUBLISHED[name]


@pytest.mark.parametrize("name", [name for name in ("gemma3n", "gemma4") if name in NAMES])
def test_a_model_with_an_audio_tower_loads(name: str, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = model_folder(name)
    if name == "gemma4":
        config, folder = config_of(folder), tmp_path
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "output_proj_dims": 16}
        config.audio_config = transformers.Gemma4AudioConfig(**sizes, subsampling_conv_channels=[4, 4])
        transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    chosen = choose_attention("auto", config_of(folder), torch.float32, ON_THE_CPU)
    heard = "sdpa" if name == "gemma3n" and IS_5 else "eager"
    assert spoken(chosen).endswith("sdpa" if heard == "sdpa" else "audio_config: eager)")
    load_as_chosen(folder, chosen, {"text_config": "sdpa", "audio_config": heard})
    if name == "gemma4":
        with pytest.raises(ModelError):
            load_as_chosen(folder, "sdpa", {})
