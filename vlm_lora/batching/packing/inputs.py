"""A packed batch as its model takes it: masks and positions made of which row each token belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vlm_lora.batching.packing.attention import additive, image_spans, segments, visible
from vlm_lora.batching.packing.collation import PACK_ROWS
from vlm_lora.batching.packing.positions import by_rope_index, restarted, row_lengths
from vlm_lora.batching.packing.style import PackingStyle
from vlm_lora.errors import ModelError

FULL, SLIDING = "full_attention", "sliding_attention"
TEXT_MODELS = frozenset(
    {
        *("llama", "mistral", "qwen2", "qwen3", "granite", "phi4_multimodal"),
        *("gemma", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text"),
        *("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
    }
)
"""Language models whose tokens meet in attention alone, by the `model_type` of their configuration."""


class PackedInputs:
    """Turns `PACK_ROWS` of a batch into the mask and the positions of its model.

    Args:
        style: how the family packs.
        text_config: the language model's configuration.
        dtype: of additive masks.
        longest: tokens of the longest row.
        rope_index: the model's `get_rope_index`, where the style wants it.
        text_model: the language model, which is told the bounds of rows where its attention is flash attention.
        window_cuts_spans: whether a window also ends what is read in both directions (`compat`).

    Raises:
        ModelError: the language model's layers or attention cannot be masked so that rows stay apart.
    """

    def __init__(
        self,
        style: PackingStyle,
        text_config: Any,
        *,
        dtype: torch.dtype,
        longest: int,
        rope_index: Callable[..., Any] | None = None,
        text_model: torch.nn.Module | None = None,
        window_cuts_spans: bool = True,
    ) -> None:
        self._style, self._config = style, text_config
        self._dtype, self._rope_index, self._cuts = dtype, rope_index, window_cuts_spans
        self._window: int | None = getattr(text_config, "sliding_window", None)
        self._kinds = layer_kinds(text_config)
        check_layers(style, text_config, longest=longest)
        self._told: dict[str, Any] = {}
        if self._by_segments:
            assert text_model is not None
            # Not as arguments of the whole model: Qwen's hands them on to its vision tower as well.
            text_model.register_forward_pre_hook(self._tell, with_kwargs=True)

    @property
    def _by_segments(self) -> bool:
        return "flash" in str(self._config._attn_implementation)

    def _tell(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        told, self._told = self._told, {}  # once: what is evaluated in between is not packed
        return args, {**kwargs, **told}

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return a batch with `attention_mask` and `position_ids` in place of `PACK_ROWS`; any other as it is.

        The mask is `(B, 1, T, T)`, or one for each kind of layer; positions are `(B, T)` or `(3, B, T)`. Flash
        attention has no mask: the next pass of the language model is told where each row begins, and the filled end.
        """
        if PACK_ROWS not in inputs:
            return inputs
        prepared = dict(inputs)
        rows = prepared.pop(PACK_ROWS)
        prepared["position_ids"] = self._positions(rows, inputs)
        if self._by_segments:
            self._told = segments(row_lengths(rows), rows.device)
            return {**prepared, "attention_mask": None}
        return {**prepared, "attention_mask": self._masks(rows, inputs)}

    def _positions(self, rows: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        if self._style.positions == "restart":
            return restarted(rows, first=self._style.first_position)
        assert self._rope_index is not None
        return by_rope_index(rows, inputs, self._rope_index)

    def _masks(self, rows: torch.Tensor, inputs: dict[str, Any]) -> Any:
        spans = self._spans(rows, inputs)
        if self._style.by_layer:
            return {kind: self._mask(kind, rows, spans) for kind in (FULL, SLIDING)}
        # Where a model takes one mask for both kinds, no row is longer than the window (`check_layers`).
        return self._mask(FULL if FULL in self._kinds else SLIDING, rows, spans)

    def _mask(self, kind: str, rows: torch.Tensor, spans: torch.Tensor | None) -> torch.Tensor:
        seen = visible(
            rows,
            window=self._window if kind == SLIDING else None,
            spans=spans if kind == SLIDING or self._style.spans_in_full else None,
            window_cuts_spans=self._cuts,
        )
        return seen if self._config._attn_implementation == "sdpa" else additive(seen, self._dtype)

    def _spans(self, rows: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor | None:
        style = self._style
        if style.spans == "none" or style.marks not in inputs:
            return None
        if style.spans_if is not None and getattr(self._config, style.spans_if[0], None) != style.spans_if[1]:
            return None
        marks = inputs[style.marks]
        return image_spans(marks > 0, rows) if style.spans == "images" else torch.where(marks == 0, 0, -1)


def layer_kinds(text_config: Any) -> frozenset[str]:
    """Return the kinds of a language model's layers, by transformers' names."""
    types = getattr(text_config, "layer_types", None)
    if types:
        return frozenset(types)
    return frozenset({FULL if getattr(text_config, "sliding_window", None) is None else SLIDING})


def check_layers(style: PackingStyle, text_config: Any, *, longest: int) -> None:
    """Refuse a language model whose rows a mask cannot keep apart.

    Raises:
        ModelError: names what it has, and what to type.
    """
    kinds, name = layer_kinds(text_config), text_config.model_type
    attention = getattr(text_config, "_attn_implementation", None)
    if attention not in (None, "sdpa", "eager") and not (style.flash and "flash" in attention):
        raise ModelError(
            f"--packing true: rows have not been proven to stay apart in this model's attention by {attention}. Type "
            "--attn_implementation sdpa or eager, or --packing false."
        )
    if name not in TEXT_MODELS or not kinds <= {FULL, SLIDING}:
        raise ModelError(
            f"--packing true: the language model {name} ({', '.join(sorted(kinds))}) has not been proven to compute "
            "packed rows as if they stood alone. Type --packing false."
        )
    window = getattr(text_config, "sliding_window", None)
    if not style.by_layer and len(kinds) > 1 and window is not None and longest > window:
        raise ModelError(
            f"--packing true: {name} has layers with and without a window of {window} tokens, takes one mask for all, "
            f"and a row has {longest}. Type --packing false, or --max_length {window} with --on_overflow."
        )
