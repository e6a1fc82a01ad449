"""Which part of a model each parameter belongs to, and which parameters can never get a gradient."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import nn

from vlm_lora.compat import KV_SHARING_NEEDS_CACHE
from vlm_lora.errors import ModelError
from vlm_lora.model.families import Family, family_of, infer_family

Part: TypeAlias = Literal["language", "vision", "projector", "head", "embeddings", "other"]
PARTS: tuple[Part, ...] = ("language", "vision", "projector", "head", "embeddings", "other")

REPLACED = ".original_module."
"""In the name of a weight that PEFT keeps beside the copy that is trained in its place."""
_PEFT_PREFIX = "base_model.model."
# What follows a tower's last layer; unused where hidden states of inner layers are read.
_AFTER_LAYERS = re.compile(r"(^|\.)(post_layernorm|head)(\.|$)")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Module paths of each part, from the top of the model without PEFT around it.

    `other` is what no path covers: an audio tower, for example.
    """

    language: tuple[str, ...]
    vision: tuple[str, ...]
    projector: tuple[str, ...]
    head: tuple[str, ...]
    embeddings: tuple[str, ...]
    never_used: tuple[re.Pattern[str], ...] = ()
    """Matches the names of parameters that never get a gradient, whatever is trained."""
    never_called: tuple[re.Pattern[str], ...] = ()
    """Matches the names of modules whose weight is read without a call."""
    media_only: tuple[str, ...] = ()
    """Decoder layers that run only where a batch has an image."""

    def part_of(self, name: str) -> Part:
        """Return the part of a parameter or module. The longest path that fits decides.

        Args:
            name: from `named_parameters` or `named_modules`, with or without PEFT's prefix.
        """
        name = name.removeprefix(_PEFT_PREFIX)
        best: tuple[int, Part] = (0, "other")
        for part in PARTS[:-1]:
            for path in getattr(self, part):
                if (name == path or name.startswith(path + ".")) and len(path) > best[0]:
                    best = (len(path), part)
        return best[1]

    def is_never_used(self, name: str) -> bool:
        """Whether the parameter or module `name` can never get a gradient."""
        name = name.removeprefix(_PEFT_PREFIX)
        return any(pattern.search(name) for pattern in self.never_used)

    def carries_lora(self, name: str) -> bool:
        """Whether LoRA on the module `name` could have an effect: it is called, and its output is read."""
        name = name.removeprefix(_PEFT_PREFIX)
        return not self.is_never_used(name) and not any(p.search(name) for p in self.never_called)

    def needs_image(self, name: str) -> bool:
        """Whether the parameter `name` gets a gradient only from batches with an image."""
        bare = name.removeprefix(_PEFT_PREFIX)
        return self.part_of(name) in ("vision", "projector") or any(
            bare.startswith(path + ".") for path in self.media_only
        )


def base_of(model: nn.Module) -> nn.Module:
    """Return the model itself, without PEFT around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def find_parts(model: nn.Module, family: Family | None = None) -> Parts:
    """Find the parts of a model, with or without PEFT around it.

    Raises:
        ModelError: the model lacks a language model or a vision tower where its family has them.
    """
    base = base_of(model)
    family = family or family_of(base.config)
    if family.is_inferred:
        family = infer_family(base, family)
    modules = dict(base.named_modules())
    present = set(modules) | {name for name, _ in base.named_parameters()}
    language = _present(family.language, present)
    vision = _present(family.vision, present)
    if not language or not vision:
        raise ModelError(
            f"{type(base).__name__} (model_type {family.model_type!r}) has no module "
            f"{' or '.join(family.vision if language else family.language)}: this version of transformers lays the "
            "model out differently. Please report the versions that `vlm-lora doctor` shows."
        )
    names = {module: name for name, module in modules.items()}
    head = base.get_output_embeddings()  # type: ignore[operator]
    inputs = names[base.get_input_embeddings()]  # type: ignore[operator]
    return Parts(
        language=language,
        vision=vision,
        projector=_present(family.projector, present),
        head=(names[head],) if head is not None else (),
        embeddings=(inputs, *_further_embeddings(modules, inputs)),
        never_used=tuple(re.compile(pattern) for pattern in _never_used(base, family, language, vision)),
        never_called=tuple(map(re.compile, family.never_called)),
        media_only=_media_only(base, family, language),
    )


def is_tied(model: Any) -> bool:
    """Whether head and input embeddings are one tensor."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def say_what_is_tied(model: Any) -> None:
    """Let a model's configuration say whether head and embeddings are one tensor, as PEFT reads it.

    transformers ties by the text model's configuration; that of the whole says what it likes (4.55: true).
    """
    if getattr(model.config, "tie_word_embeddings", None) is not None and model.get_output_embeddings() is not None:
        model.config.tie_word_embeddings = is_tied(model)


def count_parameters(model: nn.Module, parts: Parts) -> Mapping[Part, tuple[int, int]]:
    """Return `(trainable, total)` parameters of each part; a tied tensor counts once, one that a copy replaces not."""
    counts: dict[Part, tuple[int, int]] = dict.fromkeys(PARTS, (0, 0))
    for name, parameter in model.named_parameters():
        if REPLACED in name:
            continue
        part = parts.part_of(name)
        trainable, total = counts[part]
        size = size_of(parameter)
        counts[part] = (trainable + (size if parameter.requires_grad else 0), total + size)
    return counts


def size_of(parameter: nn.Parameter) -> int:
    """Return how many weights a parameter is, also where an engine keeps an empty stand-in or packs them."""
    packed = getattr(parameter, "quant_state", None)
    if packed is not None:  # two 4-bit weights are one byte
        return math.prod(packed.shape)
    # Under ZeRO-3 a parameter is an empty stand-in that knows its size.
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def decoder_layers(model: nn.Module, parts: Parts) -> tuple[str, ...]:
    """Return the names of the language model's layers, in order."""
    return _layers(base_of(model), parts.language)


def _present(paths: Iterable[str], present: set[str]) -> tuple[str, ...]:
    return tuple(path for path in paths if path in present)


def _further_embeddings(modules: Mapping[str, nn.Module], inputs: str) -> list[str]:
    """Tables of token embeddings in addition to the first one (Gemma3n's and Gemma4's per-layer embeddings)."""
    beside = re.compile(rf"{re.escape(inputs)}_[^.]*")
    return [name for name, m in modules.items() if beside.fullmatch(name) and isinstance(m, nn.Embedding)]


def _layers(base: nn.Module, paths: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the modules in the longest list of modules under `paths`."""
    best: list[str] = []
    for name, module in base.named_modules():
        inside = any(name == path or name.startswith(path + ".") for path in paths)
        if inside and isinstance(module, nn.ModuleList) and len(module) > len(best):
            best = [f"{name}.{index}" for index in range(len(module))]
    return tuple(best)


def _setting(config: Any, key: str) -> Any:
    for step in key.split("."):
        config = getattr(config, step, None)
    return config


def _never_used(base: nn.Module, family: Family, language: tuple[str, ...], vision: tuple[str, ...]) -> list[str]:
    patterns = list(family.never_used)
    read = family.feature_layer
    if isinstance(read, str):
        read = _setting(base.config, read)
    if read is not None:
        layers = _layers(base, vision)
        states = len(layers) + 1
        highest = max(index % states for index in ([read] if isinstance(read, int) else read))
        unused = [*layers[highest:], *_after_layers(base, vision)]
        patterns += [rf"^{re.escape(name)}(\.|$)" for name in unused]
    if family.kv_shared is not None and not KV_SHARING_NEEDS_CACHE:
        layers = _layers(base, language)
        borrowed = getattr(base.config.get_text_config(), family.kv_shared, 0) or 0  # type: ignore[operator, union-attr]
        for name in layers[len(layers) - borrowed :]:
            patterns.append(rf"^{re.escape(name)}\.self_attn\.(k_proj|v_proj|k_norm|v_norm)(\.|$)")
    return patterns


def _after_layers(base: nn.Module, vision: tuple[str, ...]) -> list[str]:
    found = []
    for name, _ in base.named_modules():
        path = next((path for path in vision if name.startswith(path + ".")), None)
        if path is not None and _AFTER_LAYERS.search(name[len(path) :]):
            found.append(name)
    return found


def _media_only(base: nn.Module, family: Family, language: tuple[str, ...]) -> tuple[str, ...]:
    if family.media_only_layers is None:
        return ()
    layers = _layers(base, language)
    return tuple(layers[index] for index in _setting(base.config.get_text_config(), family.media_only_layers))  # type: ignore[operator, union-attr]
