"""The adapter for Intel Gaudi, over optimum-habana."""

from vlm_lora_habana.backend import HabanaBackend

__all__ = ["HabanaBackend"]
