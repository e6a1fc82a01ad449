"""The adapter for NVIDIA GPUs."""

from vlm_lora_cuda.backend import CudaBackend

__all__ = ["CudaBackend"]
