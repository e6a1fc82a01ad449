"""The adapter for NVIDIA GPUs; it serves the CPU too, where no accelerator is installed."""

from vlm_lora_cuda.backend import CudaBackend

__all__ = ["CudaBackend"]
