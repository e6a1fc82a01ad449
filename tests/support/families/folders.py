"""Tiny model folders of types by the rules, as `support.tiny` makes them by hand."""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from support.families.processors import build_processor
from support.families.shapes import Shape, shape_of
from support.families.shrinking import merge, shrink
from support.tiny.folders import model_class, save_processor, waken

_OWN = ("pad_token_id", "bos_token_id", "eos_token_id")


def _is_token(key: str) -> bool:
    return key.endswith(("_token_id", "_token_index", "_patch_id")) and key not in _OWN


def _token_keys(default: Any) -> list[str]:
    """The keys of a configuration that stand for tokens, its parts' included."""
    found = [key for key, value in vars(default).items() if _is_token(key) and isinstance(value, int)]
    for value in vars(default).values():
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            found += _token_keys(value)
    return list(dict.fromkeys(found))


def _token_of(key: str, processor: Any, shape: Shape) -> str:
    """The token that a key stands for: what the table or the processor says, or one of that name."""
    name = key.removesuffix("_id").removesuffix("_index")
    return shape.ids.get(key) or getattr(processor, name, None) or f"<|{name}|>"


def build_config(model_type: str, shape: Shape, processor: Any) -> Any:
    """Build a type's tiny configuration over the tokens of its processor."""
    tokenizer = processor.tokenizer
    default = CONFIG_MAPPING[model_type]()

    def number(key: str) -> int | None:
        if key in ("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"):
            return len(tokenizer)
        if key in _OWN:
            return getattr(tokenizer, key)
        return tokenizer.convert_tokens_to_ids(_token_of(key, processor, shape)) if _is_token(key) else None

    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in shape.ids.items()}
    return CONFIG_MAPPING[model_type](**merge(shrink(default, number), {**ids, **shape.config}))


def build_folder(model_type: str, folder: Path, *, seed: int = 0) -> Path:
    """Write a complete model folder of a type, made by the rules and the table."""
    shape = shape_of(model_type)
    default = CONFIG_MAPPING[model_type]()
    keys = _token_keys(default)
    processor = build_processor(model_type, shape, ())
    missing = tuple(
        token
        for token in dict.fromkeys((*shape.ids.values(), *(_token_of(key, processor, shape) for key in keys)))
        if token not in processor.tokenizer.get_vocab()
    )
    if missing:
        processor = build_processor(model_type, shape, missing)
    if "vocabulary_map" in inspect.signature(type(default)).parameters:
        shape = replace(shape, config={**shape.config, "vocabulary_map": processor.tokenizer.get_vocab()})
    config = build_config(model_type, shape, processor)
    tokenizer = processor.tokenizer
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = model_class(config).from_config(copy.deepcopy(config))
        waken(model)
        model.tie_weights()
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=16,
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    save_processor(processor, folder)
    return folder
