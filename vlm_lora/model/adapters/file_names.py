"""The names that tensors have in an adapter's file, so that plain PEFT finds each of them again.

Over transformers 5, PEFT reads an adapter as transformers reads the checkpoints of a model's makers, whose names it
rewrites: `model.layers.` becomes `model.language_model.layers.`. For a few models the rewriting also changes names that
are right already (`mlp.shared_experts` becomes `mlp.mlp.shared_experts`), and PEFT warns and leaves the layer as it
began. Such a tensor is saved under the name that is rewritten to the right one, where there is one; a layer that has
none gets no LoRA.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from vlm_lora.compat import read_by_peft
from vlm_lora.errors import ConfigError
from vlm_lora.model.folder_faults import ADAPTER_WEIGHTS

_PREFIX = "base_model.model."
_MATRICES = ("lora_A.weight", "lora_B.weight")


def names_in_file(model: Any, names: Iterable[str]) -> dict[str, str | None]:
    """Return the name under which each tensor is to be saved; None where PEFT would find it under no name.

    Args:
        model: with or without PEFT around it; on any device, the meta device included.
        names: of tensors as PEFT saves them, `base_model.model. ... .lora_A.weight`.
    """
    wanted = list(names)
    found: dict[str, str | None] = dict.fromkeys(wanted)
    open_: dict[str, list[str]] = {name: [name] for name in wanted}
    first = True
    while open_:
        tried = {candidates.pop(0): name for name, candidates in open_.items()}
        read = _read_as(model, tried)
        found |= {name: tried_name for tried_name, name in tried.items() if read.get(tried_name) == name}
        if first:
            open_ = {name: _without_what_is_added(name, read[name]) for name in open_ if read.get(name)}
            first = False
        open_ = {name: candidates for name, candidates in open_.items() if candidates and found[name] is None}
    return found


def lost_modules(model: nn.Module, modules: Sequence[str]) -> list[str]:
    """Return those of the modules whose LoRA PEFT would not find again under any name."""
    tensors = {f"{_PREFIX}{module}.{matrix}": module for module in modules for matrix in _MATRICES}
    names = names_in_file(model, tensors)
    return list(dict.fromkeys(module for name, module in tensors.items() if names[name] is None))


def save_under_names_that_are_found(tuned: Any, wanted: str) -> None:
    """Make a `PeftModel` save its tensors under the names of `names_in_file`; most models' stay as they are.

    Args:
        tuned: the model; its `save_pretrained` is replaced where names differ.
        wanted: what `--lora_targets` said.

    Raises:
        ConfigError: a tensor would be found under no name.
    """
    from peft import get_peft_model_state_dict

    names = names_in_file(tuned, get_peft_model_state_dict(tuned, save_embedding_layers=False))
    lost = [name for name, other in names.items() if other is None]
    if lost:
        raise ConfigError(
            f"--lora_targets {wanted}: the installed PEFT would not find {lost[0].removeprefix(_PREFIX)} (and "
            f"{len(lost) - 1} more) again when it loads the adapter of this model. Leave these layers out, for example "
            "by --lora_targets language."
        )
    changed = {name: other for name, other in names.items() if other is not None and other != name}
    if changed:
        tuned.save_pretrained = partial(_save, tuned.save_pretrained, changed)


def _save(save: Any, changed: Mapping[str, str], save_directory: str, *arguments: Any, **keywords: Any) -> None:
    """Save as PEFT does, then give tensors their other names."""
    save(save_directory, *arguments, **keywords)
    path = Path(save_directory) / ADAPTER_WEIGHTS
    if not keywords.get("is_main_process", True):
        return
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    save_file({changed.get(name, name): tensor for name, tensor in tensors.items()}, path, metadata=metadata)


def _read_as(model: Any, names: Iterable[str]) -> dict[str, str | None]:
    """Return which tensor of the model each name of a file is read as."""
    tensors = {name: torch.empty(0) for name in names}
    # A tensor that is put together with others is none of them any more: None.
    read = {id(tensor): name for name, tensor in read_by_peft(model, tensors).items()}
    return {name: read.get(id(tensor)) for name, tensor in tensors.items()}


def _without_what_is_added(name: str, read: str | None) -> list[str]:
    """Return `name` without the piece that reading adds to it, at each place where it has that piece.

    >>> _without_what_is_added("a.mlp.up", "a.mlp.mlp.up")
    ['a.up']
    """
    if read is None:
        return []
    more = len(read) - len(name)
    starts = range(len(name) + 1) if more > 0 else range(0)
    pieces = dict.fromkeys(read[at : at + more] for at in starts if read[:at] + read[at + more :] == name)
    return list(dict.fromkeys(name.replace(piece, "", 1) for piece in pieces if piece in name))
