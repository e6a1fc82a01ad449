"""How a family of models packs, or why it does not, as data.

Facts are from transformers' modeling files of 4.55.4 and 5.23 and are held by `tests/invariant/test_packing.py`: the
loss of each row and the gradient are those of the rows unpacked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PackingStyle:
    """What a family's rows need in one sequence, so that each is computed as if it stood alone."""

    refused: str = ""
    """Why the family does not pack, as the end of a sentence; empty where it does."""
    positions: Literal["restart", "rope_index"] = "restart"
    """Where a token's position comes from: counted from the start of its row, or (M-RoPE: time, height, width) by the
    model's own `get_rope_index` for each row."""
    first_position: int = 0
    """The position of a row's first token."""
    spans: Literal["none", "images", "prefix"] = "none"
    """What is read in both directions: each image, or the row up to its answer."""
    marks: str = ""
    """The per-token tensor that marks spans: 0 for a prefix; above 0 for an image."""
    spans_if: tuple[str, str] | None = None
    """Key of the text configuration and the value with which spans are read in both directions; None: always."""
    spans_in_full: bool = True
    """Whether layers without a window read them so, too."""
    flash: bool = True
    """Whether flash attention can be told where each row begins."""
    by_layer: bool = False
    """Whether the model takes a mask for each kind of layer."""

    @property
    def packs(self) -> bool:
        """Whether rows of the family can be packed."""
        return not self.refused


_MROPE = PackingStyle(positions="rope_index")

NOT_PROVEN = PackingStyle(refused="nobody has proven that its rows are then computed as if they stood alone")
"""Any family that is not listed."""

PACKING: Mapping[str, PackingStyle] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                *("llava", "llava_next", "llava_onevision", "mistral3", "internvl", "idefics3", "smolvlm"),
                "phi4_multimodal",
            ),
            PackingStyle(),
        ),
        **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), _MROPE),
        "gemma3": PackingStyle(spans="images", marks="token_type_ids", flash=False, by_layer=True),
        "gemma3n": PackingStyle(by_layer=True),
        "gemma4": PackingStyle(
            spans="images",
            marks="mm_token_type_ids",
            spans_if=("use_bidirectional_attention", "vision"),
            spans_in_full=False,
            flash=False,
            by_layer=True,
        ),
        "paligemma": PackingStyle(spans="prefix", marks="token_type_ids", flash=False, first_position=1),
        "mllama": PackingStyle(
            refused="its cross attention lets the tokens before a row's image see the images of all other rows"
        ),
        "lfm2_vl": PackingStyle(refused="its short convolutions run across the rows of a pack"),
        "qwen3_5": PackingStyle(
            refused="its linear attention runs across the rows of a pack unless causal_conv1d and "
            "flash-linear-attention cut it there, which has not been proven"
        ),
        "phi3_v": PackingStyle(refused="its code comes with the model's folder and has not been proven"),
    }
)
"""By the `model_type` of a model's configuration."""


def packing_for(model_type: str) -> PackingStyle:
    """Return the style of a family, `NOT_PROVEN` for one that is not listed."""
    return PACKING.get(model_type, NOT_PROVEN)
