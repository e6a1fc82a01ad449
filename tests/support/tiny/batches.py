"""Images, conversations and one-row batches for tests of models, without the product's own encoder."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

QUESTION = "What is the value?"
ANSWER = "It is 12."


def build_image(seed: int, *, width: int = 48, height: int = 40) -> Image.Image:
    """Return a random RGB image; different seeds give clearly different ones."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def load_plainly(folder: Path) -> tuple[Any, Any]:
    """Return processor and model as a user of plain transformers loads them; the caller may change both.

    Of the folders that the session shares, which stay as they are, each is loaded once and copied.
    """
    shared = Path(os.environ.get("VLM_LORA_TESTS_FOLDER", "")) / "models"
    return copy.deepcopy(_load_once(folder)) if folder.parent == shared else _load(folder)


@cache
def _load_once(folder: Path) -> tuple[Any, Any]:
    return _load(folder)


def _load(folder: Path) -> tuple[Any, Any]:
    remote = {"trust_remote_code": True} if (folder / "modeling_phi3_v.py").exists() else {}
    config = transformers.AutoConfig.from_pretrained(folder, **remote)
    causal = config.model_type in ("phi4_multimodal", "phi3_v")
    kind = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForImageTextToText
    processor = transformers.AutoProcessor.from_pretrained(folder, **remote)
    return processor, kind.from_pretrained(folder, **remote).eval()


def build_batch(processor: Any, *, picture: int | None = 0) -> dict[str, torch.Tensor]:
    """Return one row as the model takes it: a question with an image (or without), and its answer."""
    image = [] if picture is None else [{"type": "image"}]
    messages = [
        {"role": "user", "content": [*image, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
    ]
    template = processor.chat_template or processor.tokenizer.chat_template
    if template:
        text = processor.apply_chat_template(messages, chat_template=template, tokenize=False)
    else:
        text = ("<image>" if image else "") + QUESTION
    pictures: Mapping[str, Any] = {} if picture is None else {"images": [[build_image(picture)]]}
    with warnings.catch_warnings():
        # PaliGemma's processor copies tensors in a way that NumPy 2 deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        batch = processor(text=[text], return_tensors="pt", **pictures)
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def next_token_loss(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return a scalar that depends on every position's logits."""
    logits = model(**batch).logits.float()
    targets = batch["input_ids"][:, 1:].clamp(min=0, max=logits.shape[-1] - 1)
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten())
