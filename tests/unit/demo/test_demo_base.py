"""The committed base model: it loads with the plain auto classes, is small, and can read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import vlm_lora.demo
from vlm_lora.demo.packing import to_pixel_values
from vlm_lora.demo.reading import held_out_scenes, score_scenes
from vlm_lora.demo.scenes import Scene, draw_scene
from vlm_lora.demo.tokenizer import train_tokenizer
from vlm_lora.demo.words import load_vocabulary

BASE = Path(vlm_lora.demo.__file__).parent / "base"

Loaded = tuple[Any, Any]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    model = AutoModelForImageTextToText.from_pretrained(BASE, torch_dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(BASE)


def test_it_is_small_and_says_where_it_comes_from() -> None:
    assert sum(path.stat().st_size for path in BASE.iterdir()) < 8e6
    record = json.loads((BASE / "PRETRAINING.json").read_text(encoding="utf-8"))
    assert {"arguments", "seconds", "answer_loss", "held_out_reading"} <= set(record)


def test_the_script_would_train_the_same_tokenizer(loaded: Loaded) -> None:
    trained = train_tokenizer(load_vocabulary().training)
    assert loaded[1].tokenizer.get_vocab() == trained.get_vocab()


def test_pixels_of_pretraining_are_those_of_its_processor(loaded: Loaded) -> None:
    picture = draw_scene(held_out_scenes(samples=1, seed=2)[0])
    pixels = loaded[1].image_processor(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, to_pixel_values([picture]), rtol=0, atol=1e-6)


def test_it_reads_unseen_texts_but_not_blank_images(loaded: Loaded) -> None:
    model, processor = loaded
    scenes = held_out_scenes(samples=60, seed=7)
    blank = [Scene(items=(), exchanges=s.exchanges, style_seed=s.style_seed) for s in scenes]
    seen = score_scenes(model, processor, scenes, device="cpu")
    unseen = score_scenes(model, processor, blank, device="cpu")
    assert seen.accuracy >= 0.2
    assert unseen.accuracy <= 0.05
