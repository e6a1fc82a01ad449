"""What the tiny configurations of all families share."""

from __future__ import annotations

from typing import Any

from support.tiny.processors import SIDE

HIDDEN = 32


def token_ids(tokenizer: Any, **names: str) -> dict[str, int]:
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}


def text_settings(tokenizer: Any, **settings: Any) -> dict[str, Any]:
    """What every decoder's configuration has."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **settings,
    }


def vision_settings(**settings: Any) -> dict[str, Any]:
    """What every vision tower's configuration has."""
    return {
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": 8,
        **settings,
    }
