"""The adapter for Intel Gaudi, over transformers 5's own hpu support."""

from vlm_lora_gaudi.backend import GaudiBackend

__all__ = ["GaudiBackend"]
