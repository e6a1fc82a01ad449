"""The table of schemes, and of the models that AWQ can be applied to.

AWQ multiplies a layer's inputs by scales that it finds from data, and divides what makes these inputs by the same, so
that the model stays what it was (Lin et al. 2023). Which module makes which layer's inputs differs between models:
llm-compressor has a table by class, and takes its default for all others without a word. Here a class that is in
neither table is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlm_lora.errors import ConfigError, nearest


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """One way to store weights in fewer bits."""

    compressor: str
    """llm-compressor's name of it."""
    meaning: str
    """In words."""
    group: int | None
    """How many neighbouring inputs of a layer share one step; None: all inputs of an output do."""
    awq: bool
    """Whether AWQ scales the weights before they are rounded, for which it needs rows."""


SCHEMES: Mapping[str, Scheme] = {
    "awq": Scheme(
        compressor="W4A16_ASYM", meaning="4 bits in groups of 128 with a zero point, after AWQ", group=128, awq=True
    ),
    "fp8-dynamic": Scheme(
        compressor="FP8_DYNAMIC",
        meaning="8-bit floats with a step for each output; activations in the same while it runs",
        group=None,
        awq=False,
    ),
}
"""By the word of `--scheme`."""

Pairs = Sequence[tuple[str, Sequence[str]]]
"""What makes inputs, and the layers that read them, as llm-compressor's patterns."""

_DECODER: Pairs = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("self_attn.v_proj", ("self_attn.o_proj",)),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ("mlp.up_proj", ("mlp.down_proj",)),
)
"""A layer of Llama, Mistral, Qwen 2, Qwen 3, as they stand in models with images."""

_GEMMA: Pairs = (
    ("self_attn.v_proj", ("self_attn.o_proj",)),
    ("pre_feedforward_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ("mlp.up_proj", ("mlp.down_proj",)),
)
"""A layer of Gemma 3, which normalises queries and keys once more. These are the pairs of llm-compressor's own table;
its patterns there reach into the tower, whose layers are called alike, and it fails."""

COMPRESSORS_OWN = ("Qwen2_5_VLForConditionalGeneration",)
"""Classes of llm-compressor's own table, whose patterns leave the tower alone."""
OURS: Mapping[str, Pairs] = {
    "Gemma3ForConditionalGeneration": _GEMMA,
    "LlavaForConditionalGeneration": _DECODER,
    "Qwen2VLForConditionalGeneration": _DECODER,
    "Qwen3VLForConditionalGeneration": _DECODER,
}
"""Other classes, by what their language model's layers are."""


def scheme_of(name: str) -> Scheme:
    """Return a scheme by the word of `--scheme`.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in SCHEMES:
        raise ConfigError(f"--scheme {name}: allowed are {', '.join(SCHEMES)}.{nearest(name, SCHEMES)}")
    return SCHEMES[name]


def pairs_of(model_class: str, language: Sequence[str]) -> Pairs | None:
    """Return which modules of a model AWQ pairs; None where llm-compressor's own table has the class.

    Args:
        model_class: as transformers names it.
        language: paths of the language model, from the top of the model.

    Raises:
        ConfigError: it is not known of this class.
    """
    if model_class in COMPRESSORS_OWN:
        return None
    if model_class not in OURS:
        raise ConfigError(
            f"--scheme awq: which layers read what is not known of {model_class}, and llm-compressor would guess. AWQ "
            f"is shown for {', '.join(sorted((*COMPRESSORS_OWN, *OURS)))}. Type --scheme fp8-dynamic."
        )
    start = rf"re:.*({'|'.join(map(re.escape, language))})\.layers\.\d+\."
    return [
        (f"{start}{re.escape(maker)}$", [f"{start}{re.escape(reader)}$" for reader in readers])
        for maker, readers in OURS[model_class]
    ]
