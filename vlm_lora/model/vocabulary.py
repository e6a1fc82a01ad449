"""Whether the embeddings have a row for every token that the tokenizer can write.

A tokenizer that got new tokens is often saved without its model. The first such token ends a run on a CPU with an
IndexError, and on a GPU with a device assert; both numbers are known before any weights are loaded.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import torch

from vlm_lora.compat import without_initialisation
from vlm_lora.errors import ModelError
from vlm_lora.model.families import Family

_MEDIA_KEY = re.compile(r"(image|video|audio|media)_token_(id|index)")


def check_vocabulary(
    config: Any,
    family: Family,
    tokenizer: Any,
    *,
    trust_remote_code: bool = False,
    learnt: frozenset[int] = frozenset(),
) -> None:
    """Refuse a tokenizer that can write ids for which the model's embeddings have no row.

    Args:
        config: the model's configuration.
        family: its family, which knows whether placeholders of media reach the embeddings.
        tokenizer: the processor's.
        trust_remote_code: whether the model's own code may be run.
        learnt: ids of which an adapter brings the rows along.

    Raises:
        ModelError: names the tokenizer's folder and both numbers.
    """
    rows = _declared_rows(config)
    tokens = {token_id: token for token, token_id in tokenizer.get_vocab().items()}
    if rows is None or max(tokens, default=-1) < rows:
        return
    # Some models have more rows than their configuration says (Llama 3.2 Vision: 8): ask one without memory.
    rows = embedding_rows(config, family, trust_remote_code=trust_remote_code)
    # A family outside the table is taken at its word: its placeholders may well be replaced before they are looked up.
    spared = media_ids(config) if family.skips_media_ids or family.is_inferred else frozenset[int]()
    beyond = sorted(token_id for token_id in tokens if token_id >= rows and token_id not in spared | learnt)
    if beyond:
        last = beyond[-1]
        raise ModelError(
            f"{tokenizer.name_or_path}: its tokenizer (tokenizer.json, tokenizer_config.json) writes ids up to {last} "
            f"({tokens[last]}), and the model's embeddings have {rows} rows, for ids up to {rows - 1}. Use the "
            "tokenizer that belongs to the model, and to learn new tokens name them in a file, one a line: "
            f"--new_tokens FILE. Or resize the embeddings (model.resize_token_embeddings({last + 1})) and save the "
            "whole model folder again."
        )


def embedding_rows(config: Any, family: Family, *, trust_remote_code: bool = False) -> int:
    """Return how many rows the input embeddings have; builds the model on torch's meta device."""
    import transformers

    keywords = {"trust_remote_code": True} if trust_remote_code else {}
    with torch.device("meta"), without_initialisation():
        # A copy: timm's towers change the configuration that they are given.
        empty = getattr(transformers, family.auto_class).from_config(copy.deepcopy(config), **keywords)
    return int(empty.get_input_embeddings().weight.shape[0])


def media_ids(config: Any) -> frozenset[int]:
    """Return the ids of placeholders of images, videos and sound that a configuration names."""
    return frozenset(_numbers(config.to_dict()))


def _numbers(settings: dict[str, Any]) -> Iterator[int]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif _MEDIA_KEY.fullmatch(str(key)) and isinstance(value, int):
            yield value


def _declared_rows(config: Any) -> int | None:
    rows = getattr(config.get_text_config(), "vocab_size", None)
    return rows if isinstance(rows, int) else None
