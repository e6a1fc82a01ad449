"""Every parameter of every family belongs to exactly one part, and images matter."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from support.tiny import available
from support.tiny.batches import build_batch, load_plainly, next_token_loss
from vlm_lora.compat import known_model_types
from vlm_lora.errors import ModelError
from vlm_lora.model.families import FAMILIES, Family, family_of, infer_family
from vlm_lora.model.parts import PARTS, count_parameters, decoder_layers, find_parts

NAMES = available()


def test_every_family_that_the_installed_transformers_has_is_under_test() -> None:
    tiny = {name.partition("-")[0] for name in NAMES}
    installed = {name for name, family in FAMILIES.items() if name in known_model_types() and not family.refused}
    assert tiny == installed | {"phi3_v"}


@pytest.mark.parametrize("name", NAMES)
def test_parts_hold_every_parameter_once(name: str, model_folder: Callable[[str], Path]) -> None:
    _, model = load_plainly(model_folder(name))
    parts = find_parts(model)
    counts = count_parameters(model, parts)
    assert sum(total for _, total in counts.values()) == sum(p.numel() for p in model.parameters())
    for part in ("language", "vision", "projector", "embeddings"):
        assert counts[part][1] > 0, part
    other = {n for n, _ in model.named_parameters() if parts.part_of(n) == "other"}
    assert all("audio" in n for n in other), other
    # Paths of two parts never name the same module.
    paths = [path for part in PARTS[:-1] for path in getattr(parts, part)]
    assert len(paths) == len(set(paths))


@pytest.mark.parametrize("name", NAMES)
def test_vision_and_language_are_where_the_table_says(name: str, model_folder: Callable[[str], Path]) -> None:
    processor, model = load_plainly(model_folder(name))
    parts = find_parts(model)
    ran: list[str] = []
    for path in parts.vision:
        model.get_submodule(path).register_forward_hook(lambda *_: ran.append("vision"))
    for path in decoder_layers(model, parts):
        model.get_submodule(path).register_forward_hook(lambda *_: ran.append("layer"))
    with torch.no_grad():
        model(**build_batch(processor))
    assert ran[0] == "vision"
    assert ran.count("layer") == model.config.get_text_config().num_hidden_layers


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_image_changes_the_logits(name: str, model_folder: Callable[[str], Path]) -> None:
    processor, model = load_plainly(model_folder(name))
    with torch.no_grad():
        right, again, wrong = (model(**build_batch(processor, picture=n)).logits[:, -1] for n in (0, 0, 1))
    torch.testing.assert_close(right, again)
    assert (right - wrong).abs().max() > 0.02


@pytest.mark.parametrize("name", NAMES)
def test_exactly_the_never_used_parameters_get_no_gradient(name: str, model_folder: Callable[[str], Path]) -> None:
    processor, model = load_plainly(model_folder(name))
    parts = find_parts(model)
    model.train()
    next_token_loss(model, build_batch(processor)).backward()
    used = {n: p.grad is not None for n, p in model.named_parameters() if parts.part_of(n) != "other"}
    silent = {n for n, reached in used.items() if not reached}
    assert silent == {n for n in used if parts.is_never_used(n)}


@pytest.mark.parametrize("name", NAMES)
def test_a_family_outside_the_table_is_found_by_looking(
    name: str, model_folder: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    _, model = load_plainly(model_folder(name))
    known = find_parts(model)
    stranger = Family(model_type="stranger", language=(), vision=(), projector=())
    with caplog.at_level(logging.WARNING):
        found = find_parts(model, infer_family(model, stranger))
    assert "not in the table of families" in caplog.text
    for parameter, _ in model.named_parameters():
        assert found.part_of(parameter) == known.part_of(parameter), parameter


def test_a_wrong_path_in_the_table_is_an_error(model_folder: Callable[[str], Path]) -> None:
    _, model = load_plainly(model_folder("llava"))
    moved = replace(family_of(model.config), vision=("model.eyes",))
    with pytest.raises(ModelError, match=r"no module model\.eyes"):
        find_parts(model, moved)


def test_a_text_model_has_no_parts() -> None:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(ModelError, match="No vision tower"):
        find_parts(transformers.LlamaForCausalLM(config))
