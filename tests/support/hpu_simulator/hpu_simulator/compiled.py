"""Counts what `torch.compile(backend="hpu_backend")` hands over, and whether dynamo left a size of it open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch._guards import CompileContext


class Compiled(NamedTuple):
    """Graphs handed over since the process began."""

    graphs: int
    dynamic: int
    """Of these, with a size that is not fixed: hardware compiles one again for each size that it meets."""
    most_of_one_code: int
    """Of the function of which there are most; dynamo's `recompile_limit` bounds these."""


_by_code: Counter[int] = Counter()
_dynamic = 0


def count(inputs: Sequence[Any]) -> None:
    """Note a graph with these inputs, which hardware would compile now, together with that of its backward pass."""
    global _dynamic
    sizes = [size for value in inputs if isinstance(value, torch.Tensor) for size in value.shape]
    _dynamic += any(isinstance(size, torch.SymInt) for size in [*sizes, *inputs])
    now = CompileContext.current_compile_id()
    _by_code[-1 if now is None or now.frame_id is None else now.frame_id] += 1


def compiled() -> Compiled:
    """Return the figures."""
    return Compiled(_by_code.total(), _dynamic, max(_by_code.values(), default=0))
