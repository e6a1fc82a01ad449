"""Fine-tune vision-language models, LoRA first, on NVIDIA GPUs, Intel Gaudi and CPUs."""

__version__ = "0.1.0"
