"""The base that any torch device stands on; by itself it serves the CPU."""

from vlm_lora_torch.backend import TorchBackend
from vlm_lora_torch.launcher import TorchLauncher
from vlm_lora_torch.planner import TorchPlanner

__all__ = ["TorchBackend", "TorchLauncher", "TorchPlanner"]
