"""A model on features that its tower gave before computes what it computes on pixels, in every family."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from support.tiny.batches import build_image
from support.tiny.folders import available
from vlm_lora.batching.encoded import EncodedRow
from vlm_lora.compat import IS_5
from vlm_lora.config.run_config import ModelConfig, RunConfig
from vlm_lora.data.conversation import Conversation, ImageRef, RowSource, Text, Turn
from vlm_lora.errors import ModelError
from vlm_lora.model.features.obstacles import obstacle_in_model
from vlm_lora.model.features.tower import Tower
from vlm_lora.model.loading import load_model
from vlm_lora.model.parts import find_parts
from vlm_lora.session import Preprocessing, open_preprocessing

NO_ENTRY = ("phi4_multimodal", "phi3_v")
ONE_IMAGE_A_ROW = ("paligemma",) if IS_5 else ("paligemma", "llava_onevision")
"""PaliGemma's processor takes no row without an image, and 4.55's LLaVA-OneVision no batch of one and several."""
HANDED = [name for name in available() if name not in NO_ENTRY]


def row_of(number: int, images: Sequence[tuple[int, int, int]], folder: Path) -> Conversation:
    """Return a row with images of (seed, width, height)."""
    parts: list[ImageRef | Text] = []
    for seed, width, height in images:
        place = folder / f"{seed}-{width}x{height}.png"
        build_image(seed, width=width, height=height).save(place)
        parts.append(ImageRef(source=place))
    question = Turn(role="user", parts=(*parts, Text(text="What is the value of the second one?"[: 12 + 5 * number])))
    answer = Turn(role="assistant", parts=(Text(text="It is 12."),))
    return Conversation(turns=(question, answer), source=RowSource(file="rows", row=number))


def rows_for(name: str, folder: Path) -> list[Conversation]:
    first = row_of(0, [(1, 48, 40)], folder)
    if name in ONE_IMAGE_A_ROW:
        return [first, row_of(1, [(2, 60, 90)], folder)]
    return [first, row_of(1, [], folder), row_of(2, [(2, 60, 90), (3, 100, 40)], folder)]


def opened(name: str, model_folder: Callable[[str], Path]) -> tuple[Preprocessing, Any]:
    config = ModelConfig(model_name_or_path=str(model_folder(name)))
    model = load_model(config, model_kwargs={"torch_dtype": torch.float32}).eval()
    return open_preprocessing(RunConfig(model=config)), model


def logits(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**{k: v for k, v in batch.items() if k not in ("labels", "supervised_positions")}).logits


def on_features(model: Any, tower: Tower, rows: Sequence[EncodedRow], batch: dict[str, Any]) -> torch.Tensor:
    """Return the logits of the batch with features in place of its media."""
    features = [tower.features(row.media) if row.media else None for row in rows]
    media = {name for row in rows for name in row.media} - set(tower.read_beside)
    kept = {name: tensor for name, tensor in batch.items() if name not in media}
    with tower.given():
        return logits(model, {**kept, **tower.inputs(features, lambda: tower.features(tower.blank_media()))})


@pytest.mark.parametrize("name", HANDED)
def test_logits_on_features_equal_logits_on_pixels(
    name: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    preprocessing, model = opened(name, model_folder)
    rows = [preprocessing.encoder.encode(row) for row in rows_for(name, tmp_path)]
    batch = preprocessing.collator.collate(rows)
    wanted = logits(model, batch)
    tower = Tower(model, preprocessing.family)
    assert torch.equal(logits(model, batch), wanted), "on pixels the model is as it was"
    handed = on_features(model, tower, rows, batch)
    assert torch.allclose(handed, wanted, rtol=1e-5, atol=1e-5), (handed - wanted).abs().max()
    other = preprocessing.encoder.encode(row_of(0, [(9, 48, 40)], tmp_path))
    wrong = on_features(model, tower, [other, *rows[1:]], batch)
    assert (wrong[0] - wanted[0]).abs().max() > 1e-3, "the control: another image's features"


@pytest.mark.parametrize("name", ["phi4_multimodal"])
def test_a_family_without_an_entry_says_so(name: str, model_folder: Callable[[str], Path]) -> None:
    preprocessing, model = opened(name, model_folder)
    assert preprocessing.family.features.entry == "none"
    with pytest.raises(ModelError, match="lays the model out differently"):
        Tower(model, preprocessing.family)


@pytest.mark.parametrize("change", ["none", "dropout", "drop path", "batch norm", "trains"])
def test_a_tower_that_computes_otherwise_in_training_is_said(change: str, model_folder: Callable[[str], Path]) -> None:
    preprocessing, model = opened("gemma3", model_folder)
    model.requires_grad_(False)
    tower = model.get_submodule("model.vision_tower")
    if change == "dropout":
        next(module for module in tower.modules() if hasattr(module, "k_proj")).dropout = 0.1
    elif change == "drop path":
        tower.extra = type("DropPath", (torch.nn.Identity,), {})()
        tower.extra.drop_prob = 0.1
    elif change == "batch norm":
        tower.extra = torch.nn.BatchNorm2d(3, affine=False)
    elif change == "trains":
        next(tower.parameters()).requires_grad_(True)
    found = obstacle_in_model(model, find_parts(model, preprocessing.family))
    said = {"none": "^$", "trains": "the vision tower trains"}.get(change, "computes otherwise in training")
    assert re.search(said, found)
