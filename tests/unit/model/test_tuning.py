"""LoRA sits on exactly the modules that were asked for, and a saved adapter reloads with plain PEFT."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from support.tiny import available
from support.tiny.batches import build_batch, load_plainly, next_token_loss
from vlm_lora.config.run_config import TuningConfig
from vlm_lora.errors import ConfigError, ModelError
from vlm_lora.model.adapters.targets import (
    CONVOLUTIONS,
    compact_regex,
    module_setting,
    resolve_targets,
    selected_modules,
)
from vlm_lora.model.families import family_of
from vlm_lora.model.parts import count_parameters, find_parts
from vlm_lora.model.tuning import apply_tuning
from vlm_lora.serving.servable import judge
from vlm_lora.training.outputs import check_adapter_settings

NAMES = available()


def _tune(model: Any, **settings: Any) -> Any:
    return apply_tuning(model, family_of(model.config), TuningConfig(lora_rank=2, **settings))


def _adapted(tuned: Any) -> set[str]:
    return {n.removeprefix("base_model.model.") for n, m in tuned.named_modules() if hasattr(m, "lora_A")}


@pytest.mark.parametrize("name", NAMES)
def test_default_lora_is_on_every_linear_of_the_language_model_and_nowhere_else(
    name: str, model_folder: Callable[[str], Path]
) -> None:
    _, model = load_plainly(model_folder(name))
    parts = find_parts(model)
    linears = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    language = {n for n in linears if parts.part_of(n) == "language" and parts.carries_lora(n)}
    tuned = _tune(model)
    assert _adapted(tuned) == language
    counts = count_parameters(tuned, parts)
    assert counts["language"][0] > 0
    assert sum(trainable for trainable, _ in counts.values()) == counts["language"][0]
    assert not any("lm_head" in n or "embed_tokens." in n for n in _adapted(tuned))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wanted", ["projector", "vision", "language,projector", "all"])
def test_each_choice_of_parts_gets_what_it_says(name: str, wanted: str, model_folder: Callable[[str], Path]) -> None:
    _, model = load_plainly(model_folder(name))
    parts = find_parts(model)
    words = ("language", "projector", "vision") if wanted == "all" else tuple(wanted.split(","))
    expected = {
        n
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and parts.part_of(n) in words and parts.carries_lora(n)
    }
    # Gemma3's projector is a bare tensor, Gemma3n's tower is all convolutions.
    if not expected:
        with pytest.raises(ConfigError, match="has no linear layers"):
            resolve_targets(model, parts, wanted)
        return
    chosen = list(resolve_targets(model, parts, wanted).modules)
    assert set(chosen) == expected
    pattern = compact_regex(model, chosen)
    assert {n for n, _ in model.named_modules() if re.fullmatch(pattern, n)} == expected
    # Compact: one alternative per kind of module, not per layer.
    assert len(pattern) < 1200
    # What PEFT gets is a list, and selects the same.
    setting = module_setting(model, chosen)
    assert isinstance(setting, list)
    assert selected_modules(model, setting) == expected


def _nested(names: Sequence[str]) -> nn.Module:
    """A module with linear layers of these names."""
    root = nn.Module()
    for name in names:
        *above, last = name.split(".")
        place = root
        for step in above:
            if not hasattr(place, step):
                place.add_module(step, nn.Module())
            place = getattr(place, step)
        place.add_module(last, nn.Linear(1, 1))
    return root


@pytest.mark.parametrize(
    ("chosen", "others", "setting"),
    [
        (["text.0.q", "text.1.q"], ["tower.0.k"], ["q"]),
        (["text.0.mlp.up"], ["tower.0.up"], ["mlp.up"]),
        (["text.0.up", "text.1.up"], ["tower.0.up"], ["text.0.up", "text.1.up"]),
        (["text.1.up"], ["text.0.up"], ["text.1.up"]),
        (["text.0.q", "text.0.up"], ["tower.0.up"], ["q", "text.0.up"]),
        (["text.0.up"], ["audio.text.0.up"], r"text\.\d+\.up"),  # the end of another's name: no list is exact
    ],
)
def test_a_list_names_what_is_chosen_and_nothing_else(
    chosen: list[str], others: list[str], setting: str | list[str]
) -> None:
    model = _nested([*chosen, *others])
    assert module_setting(model, chosen) == setting
    assert selected_modules(model, setting) == set(chosen)
    # The control: the last steps alone select the others too, wherever they are not enough.
    ends = [name.rpartition(".")[2] for name in chosen]
    assert (selected_modules(model, ends) == set(chosen)) == (setting == ["q"])


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_adapter_reloads_with_plain_peft(
    name: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    processor, model = load_plainly(model_folder(name))
    # In double precision, where only a wrong weight makes a difference.
    batch = {key: v.double() if v.is_floating_point() else v for key, v in build_batch(processor).items()}
    model = model.double()
    with torch.no_grad():
        untouched = model(**batch).logits
    tuned = _tune(model, lora_targets="all").eval()
    with torch.no_grad():
        for n, p in tuned.named_parameters():
            if "lora_B" in n:
                p.normal_(std=0.05, generator=torch.Generator().manual_seed(len(n)))
        ours = tuned(**batch).logits
    tuned.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert isinstance(settings["target_modules"], list)
    assert selected_modules(tuned, settings["target_modules"]) == _adapted(tuned)
    assert not [why for verdict in judge(tmp_path) for why in verdict.why if "target_modules" in why]
    assert settings["base_model_name_or_path"] == str(model_folder(name))
    _, fresh = load_plainly(model_folder(name))
    reloaded = PeftModel.from_pretrained(fresh.double(), str(tmp_path)).eval()
    with torch.no_grad():
        theirs = reloaded(**batch).logits
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    # The control: without the adapter the logits are others.
    assert (untouched - ours).abs().max() > 1e-2


def test_a_bare_name_means_the_language_model(model_folder: Callable[[str], Path]) -> None:
    _, model = load_plainly(model_folder("llava"))
    parts = find_parts(model)
    tower = [n for n, _ in model.named_modules() if n.endswith("q_proj") and parts.part_of(n) == "vision"]
    assert tower
    chosen = resolve_targets(model, parts, "q_proj, v_proj").modules
    assert len(chosen) == 4
    assert {parts.part_of(n) for n in chosen} == {"language"}
    assert resolve_targets(model, parts, '["q_proj", "v_proj"]').modules == chosen
    assert resolve_targets(model, parts, tower[0]).modules == (tower[0],)


def test_a_regex_must_match_whole_names_and_may_reach_the_tower(model_folder: Callable[[str], Path]) -> None:
    _, model = load_plainly(model_folder("llava"))
    parts = find_parts(model)
    chosen = resolve_targets(model, parts, r".*layers\.0\..*(q|v)_proj").modules
    assert {parts.part_of(n) for n in chosen} == {"language", "vision"}
    assert all(".0." in n for n in chosen)


def test_a_regex_never_reaches_head_or_embeddings(model_folder: Callable[[str], Path]) -> None:
    _, model = load_plainly(model_folder("qwen2_vl"))
    parts = find_parts(model)
    chosen = resolve_targets(model, parts, ".*").modules
    assert {parts.part_of(n) for n in chosen} == {"language", "vision", "projector"}
    # What is named is taken, convolutions too.
    assert any(isinstance(model.get_submodule(n), CONVOLUTIONS) for n in chosen)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("q_porj", r"no module is called 'q_porj'\. Nearest: q_proj"),
        ("q_proj,lm_head", "no module is called 'lm_head'.*Embeddings and head carry no LoRA"),
        (r".*decoder\.q_proj", "matches no module that can carry LoRA.*Module names look like model\\."),
        ("*q_proj", "not a regular expression"),
        ("", "matches no module"),
    ],
)
def test_targets_that_select_nothing_say_what_there_is(
    wanted: str, message: str, model_folder: Callable[[str], Path]
) -> None:
    _, model = load_plainly(model_folder("qwen2_vl"))
    with pytest.raises(ConfigError, match=message):
        resolve_targets(model, find_parts(model), wanted)


def test_a_regex_of_single_layers_keeps_their_numbers(model_folder: Callable[[str], Path]) -> None:
    _, model = load_plainly(model_folder("mllama"))
    names = [n for n in resolve_targets(model, find_parts(model), "language").modules if ".layers.1." not in n]
    pattern = compact_regex(model, names)
    assert {n for n, _ in model.named_modules() if re.fullmatch(pattern, n)} == set(names)


def test_rslora_and_dora_reach_peft(model_folder: Callable[[str], Path]) -> None:
    _, model = load_plainly(model_folder("qwen2_vl"))
    tuned = _tune(model, use_rslora=True, use_dora=True, lora_alpha=8.0, lora_dropout=0.1)
    config = tuned.peft_config["default"]
    assert (config.use_rslora, config.use_dora, config.lora_alpha, config.lora_dropout) == (True, True, 8.0, 0.1)


def test_lora_weights_are_float32_on_a_bfloat16_model(model_folder: Callable[[str], Path]) -> None:
    _, model = load_plainly(model_folder("qwen2_vl"))
    tuned = _tune(model.to(torch.bfloat16))
    dtypes = {p.dtype for p in tuned.parameters() if p.requires_grad}
    assert dtypes == {torch.float32}


@pytest.mark.parametrize("name", NAMES)
def test_full_weights_freeze_part_by_part(name: str, model_folder: Callable[[str], Path]) -> None:
    processor, model = load_plainly(model_folder(name))
    parts = find_parts(model)
    tuned = _tune(model, peft_method="none", freeze_vision=True)
    assert tuned is model
    trained = {parts.part_of(n) for n, p in model.named_parameters() if p.requires_grad}
    assert {"language", "embeddings", "projector"} <= trained <= {"language", "embeddings", "head", "projector"}
    model.train()
    next_token_loss(model, build_batch(processor)).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    _tune(model, peft_method="none", freeze_language=True, freeze_vision=False, freeze_projector=True)
    assert {parts.part_of(n) for n, p in model.named_parameters() if p.requires_grad} == {"vision"}


def test_an_adapter_is_no_base_to_train_from(model_folder: Callable[[str], Path]) -> None:
    _, model = load_plainly(model_folder("qwen2_vl"))
    tuned = _tune(model)
    with pytest.raises(ModelError, match="Qwen2VLForConditionalGeneration carries an adapter already"):
        apply_tuning(tuned, family_of(model.config), TuningConfig())


def test_a_checkpoint_that_names_its_modules_by_a_regular_expression_is_gone_on_from(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """As earlier versions wrote them: what counts is which modules are selected."""
    _, model = load_plainly(model_folder("qwen2_5_vl"))
    chosen = resolve_targets(model, find_parts(model), "language").modules
    pattern = compact_regex(model, chosen)
    tuned = _tune(model)
    tuned.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))

    def written(targets: str | list[str]) -> str:
        file.write_text(json.dumps({**settings, "target_modules": targets}), encoding="utf-8")
        return str(tmp_path)

    for same in (pattern, list(reversed(settings["target_modules"])), list(chosen)):
        check_adapter_settings(written(same), tuned)
    with pytest.raises(ConfigError, match=rf"--lora_targets 4 modules in the checkpoint, {len(chosen)} now \(model"):
        check_adapter_settings(written(r".*language_model.*\.(q|v)_proj"), tuned)
    with pytest.raises(ConfigError, match=r"\.visual\.\S+ in the checkpoint alone\)"):
        check_adapter_settings(written([name.rpartition(".")[2] for name in chosen]), tuned)
