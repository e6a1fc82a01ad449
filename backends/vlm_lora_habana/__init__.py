"""The adapter for Intel Gaudi. This version probes the machine; training on Gaudi is not in it yet."""

from vlm_lora_habana.backend import HabanaBackend

__all__ = ["HabanaBackend"]
