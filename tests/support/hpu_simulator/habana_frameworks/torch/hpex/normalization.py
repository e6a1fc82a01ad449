"""Fused norms, by their formulas."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


class FusedRMSNorm:
    """x / sqrt(mean(x^2) + eps) * gamma, in fp32."""

    @staticmethod
    def apply(data: torch.Tensor, gamma: torch.Tensor, eps: float, *args: Any) -> torch.Tensor:
        """Normalise the last dimension."""
        wide = data.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return (scaled * gamma.float()).to(data.dtype)


class FusedClipNorm:
    """Clips gradients by their global norm without a value that the host reads."""

    def __init__(self, parameters: Iterable[torch.Tensor], max_norm: float) -> None:
        self.max_norm = float(max_norm)

    @torch.no_grad()
    def clip_norm(self, parameters: Iterable[torch.Tensor]) -> torch.Tensor:
        """Scale the gradients in place; return the norm before, shape [1]."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return torch.zeros(1)
        norm = torch.stack([g.float().norm(2) for g in gradients]).norm(2)
        scale = (self.max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale.to(gradient.dtype))
        return norm.reshape(1)
