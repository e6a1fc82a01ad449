"""How torch's devices start N processes: by torch's launcher, accelerate's or DeepSpeed's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vlm_lora.errors import ConfigError
from vlm_lora.launch.launching import Launch, LaunchRequest, deepspeed, torchrun
from vlm_lora_torch.accelerate_flags import accelerate_launch


class TorchLauncher:
    """One process per device, here as many as were asked for."""

    def count(self) -> int:
        """Return how many devices this machine has; 0 where there is nothing to count."""
        return 0

    def numbers(self) -> list[int]:
        """Return the devices' numbers, where DeepSpeed's launcher must be told; empty for the first ones."""
        return []

    def launch(self, request: LaunchRequest, command: Sequence[str]) -> Launch:
        """Start by accelerate's or DeepSpeed's launcher where asked, else by torch's; one process per device."""
        if request.use_mpi:
            raise ConfigError(
                "--use_mpi is for Gaudi; leave it out, type --use_deepspeed, or start by mpirun yourself: "
                "mpirun -n 8 vlm-lora train ..."
            )
        devices = self.count()
        if request.use_accelerate:
            return accelerate_launch(request, command, devices=devices)
        if request.world_size is not None and 0 < devices < request.world_size and request.hostfile is None:
            raise ConfigError(f"--world_size {request.world_size}: this machine has {devices} GPUs.")
        request = replace(request, world_size=request.world_size or max(devices, 1))
        if request.use_deepspeed:
            return deepspeed(request, command, devices=self.numbers()[: request.world_size])
        return torchrun(request, command)
