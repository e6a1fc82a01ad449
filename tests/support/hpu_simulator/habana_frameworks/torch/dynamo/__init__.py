"""`torch.compile(backend="hpu_backend")`: runs the captured graph as it is. Found by torch's entry point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hpu_simulator import compiled


def hpu_backend(graph: Any, inputs: Sequence[Any], **options: Any) -> Callable[..., Any]:
    """Compile nothing, and count the graph with the one of its backward pass as one."""
    compiled.count(inputs)
    return graph.forward
