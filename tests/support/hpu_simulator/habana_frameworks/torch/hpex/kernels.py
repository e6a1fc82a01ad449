"""Fused attention and rotary embeddings, by their formulas. CTCLoss is left out: importers fall back without it."""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from torch.nn import functional


class RotaryPosEmbeddingMode(Enum):
    """How the halves of a rotary embedding lie."""

    BLOCKWISE = 0
    PAIRWISE = 1


class FusedSDPA:
    """softmax(q k^T * scale + mask) v."""

    @staticmethod
    def apply(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool | None = False,
        scale: float | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attend; grouped key and value heads are allowed."""
        if query.dim() == 4 and key.shape[1] != query.shape[1]:
            key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
            value = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout_p, is_causal=bool(is_causal), scale=scale
        )


def _rotate_half(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


class RotaryPosEmbeddingHelperV2:
    """x * cos + rotate_half(x) * sin."""

    @staticmethod
    def apply(
        x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, position_ids: Any = None, *args: Any
    ) -> torch.Tensor:
        """Rotate."""
        if position_ids is not None and cos.dim() == 2:
            cos, sin = cos[position_ids].unsqueeze(1), sin[position_ids].unsqueeze(1)
        return x * cos + _rotate_half(x) * sin


RotaryPosEmbeddingHelperV3 = RotaryPosEmbeddingHelperV2


def apply_rotary_pos_emb(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, position_ids: Any = None, *args: Any
) -> torch.Tensor:
    """Rotate, as `RotaryPosEmbeddingHelperV2`."""
    return RotaryPosEmbeddingHelperV2.apply(x, cos, sin, position_ids)
