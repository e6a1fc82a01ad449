"""Let FSDP2 train on CPU processes over gloo: accelerate 1.15 turns FSDP on for GPU kinds only."""

from __future__ import annotations

from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


def install() -> None:
    """Make accelerate's state say FSDP on CPU processes where an FSDP plugin was given."""
    original = AcceleratorState.__init__

    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        plugin = kwargs.get("fsdp_plugin")
        if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = plugin
            # As accelerate does: each later state takes its kind from there.
            PartialState._shared_state["distributed_type"] = self.distributed_type

    AcceleratorState.__init__ = initialise
