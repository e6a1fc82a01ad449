"""Tokens that a run adds to its tokenizer (`--new_tokens`): of the embeddings only their rows are trained.

Each begins as the mean of the rows of the pieces that the tokenizer wrote it with before. Embeddings without rows left
for them grow; the head's rows are trained too where it is not tied. PEFT keeps the rows by their ids
(`trainable_token_indices`), so whoever loads the adapter gives the base as many rows first.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlm_lora.config.run_config import ModelConfig
from vlm_lora.errors import ConfigError, ModelError
from vlm_lora.model.folder_faults import adapter_settings
from vlm_lora.model.loading import adapter_folder
from vlm_lora.model.parts import Parts

logger = logging.getLogger(__name__)

SETTING = "trainable_token_indices"
"""Of adapter_config.json: the rows, by module."""
FLAG = "--new_tokens"


@dataclass(frozen=True, kw_only=True)
class NewTokens:
    """Tokens that were added to a tokenizer."""

    ids: tuple[int, ...]
    pieces: tuple[tuple[int, ...], ...]
    """Of each token: the ids that it was written with before."""


def read_tokens(file: str) -> tuple[str, ...]:
    """Return the tokens of a text file, one a line.

    Raises:
        ConfigError: the file cannot be read, names nothing, or a line is empty, has white space around it or is there
            twice.
    """
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise ConfigError(
            f"{FLAG} {file}: cannot be read: {reason}. Give a text file with one token a line."
        ) from error
    lines = text.splitlines()
    if not lines:
        raise ConfigError(f"{FLAG} {file}: it is empty. Write one token a line, such as <C1>, or leave {FLAG} out.")
    for number, line in enumerate(lines, 1):
        if not line or line != line.strip():
            fault = "is empty" if not line.strip() else "has white space around its token"
            raise ConfigError(f"{FLAG} {file}, line {number}: it {fault}. Write one token a line and nothing else.")
        if line in lines[: number - 1]:
            raise ConfigError(f"{FLAG} {file}, line {number}: {line!r} is there twice. Take one of them out.")
    return tuple(lines)


def add_tokens(tokenizer: Any, file: str) -> NewTokens:
    """Add a file's tokens to a tokenizer; each is found wherever a text holds it.

    Raises:
        ConfigError: as `read_tokens`; or the tokenizer has one of them already.
    """
    from transformers import AddedToken

    tokens = read_tokens(file)
    known = tokenizer.get_vocab()
    there = [token for token in tokens if token in known]
    if there:
        raise ConfigError(
            f"{FLAG} {file}: {there[0]!r} (and {len(there) - 1} more) is a token of this tokenizer already. Take what "
            "it has out of the file; LoRA changes what the model makes of tokens that it knows."
        )
    pieces = tuple(tuple(tokenizer(token, add_special_tokens=False)["input_ids"]) for token in tokens)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    ids = tuple(tokenizer.convert_tokens_to_ids(list(tokens)))
    logger.info("New tokens: %d from %s, ids %d to %d.", len(ids), file, min(ids), max(ids))
    return NewTokens(ids=ids, pieces=pieces)


def rows_of_adapter(config: ModelConfig) -> list[int]:
    """Return the ids of the token rows that an adapter brings along; nothing where no adapter is named."""
    folder = adapter_folder(config)
    stored = None if folder is None else adapter_settings(folder).get(SETTING)
    rows = [row for each in stored.values() for row in each] if isinstance(stored, Mapping) else stored or []
    return sorted({int(row) for row in rows})


def grow(model: Any, parts: Parts, rows: int) -> None:
    """Give the embeddings, and the head, `rows` rows where they have fewer; the new ones hold nothing yet.

    Raises:
        ModelError: this model has further tables by token, which nobody would fill.
    """
    embeddings = model.get_input_embeddings().weight
    if rows <= embeddings.shape[0]:
        return
    head = model.get_output_embeddings()
    if len(parts.embeddings) > 1 or (head is not None and head.weight.shape[0] != embeddings.shape[0]):
        raise ModelError(
            f"{FLAG}: the embeddings of {type(model).__name__} have {embeddings.shape[0]} rows and would need {rows}, "
            "and this model has further tables by token that do not grow with them. Put the tokens in place of unused "
            "ones of its tokenizer, or leave them out."
        )
    # Not random: what a row begins with is decided where it is trained, and read where it is loaded.
    model.resize_token_embeddings(rows, mean_resizing=False)
    logger.info("Embeddings: %d rows, %d before.", rows, embeddings.shape[0])


@torch.no_grad()
def begin_rows(model: Any, tokens: NewTokens) -> None:
    """Let each new row begin as the mean of the rows of its token's pieces, in the embeddings and an untied head."""
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    weights: dict[int, torch.Tensor] = {id(table.weight): table.weight for table in tables if table is not None}
    for weight in weights.values():
        for row, pieces in zip(tokens.ids, tokens.pieces, strict=True):
            weight[row] = weight[list(pieces)].float().mean(dim=0).to(weight.dtype)


def refuse_other_tables(model: Any) -> None:
    """Refuse embeddings and heads of which PEFT would compute something else than the model does.

    In their place it looks rows up and multiplies by them itself.

    Raises:
        ModelError: names the class.
    """
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    plain = type(embeddings).forward is nn.Embedding.forward or hasattr(embeddings, "embed_scale")
    if isinstance(embeddings, nn.Embedding) and plain and getattr(head, "bias", None) is None:
        return
    which = "head has a bias" if plain else f"embeddings are {type(embeddings).__name__}"
    raise ModelError(
        f"{FLAG}: the {which} in {type(model).__name__}, which PEFT's trainable tokens leave out. Train full weights "
        f"by --peft_method none on a model folder that has the tokens, or leave {FLAG} out."
    )


def keep_rows_in_float32(tuned: Any) -> None:
    """Make the rows that are trained float32, as LoRA's own weights are; PEFT casts them where they are used."""
    for name, parameter in tuned.named_parameters():
        if "trainable_tokens_delta" in name:
            parameter.data = parameter.data.float()


def indices(model: Any, parts: Parts, tokens: NewTokens | None) -> dict[str, list[int]] | None:
    """Return `trainable_token_indices` for PEFT: by module, also for the head where it has rows of its own."""
    if tokens is None:
        return None
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    found = {parts.embeddings[0]: list(tokens.ids)}
    if head is not None and head.weight is not embeddings.weight:
        found[parts.head[0]] = list(tokens.ids)
    return found


def save_rows_alone(tuned: Any) -> None:
    """Keep PEFT from saving all embeddings beside the new rows because their number has changed."""
    tuned.save_pretrained = partial(tuned.save_pretrained, save_embedding_layers=False)
