"""Run a model's own code without its numbers: every tensor has its shape, dtype and storage size, nothing is computed.

PyTorch's FakeTensorMode does this for whole programs (its MemTracker counts memory with it), but stops where a
shape depends on a value: which tokens are an image's, how an image is cut. Here the small tensors that hold such
values stay real and are computed, and only what meets weights or pixels is fake.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from vlm_lora.memory.ledger import Ledger

REAL_ELEMENTS = 2**22
"""Larger tensors are never computed: ids, positions and grids are far smaller, masks of long batches far larger."""

_aten = torch.ops.aten
_INDEXED = frozenset(
    [_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._unsafe_index_put.default]
)

_GROUPED = getattr(getattr(_aten, "_grouped_mm", None), "default", None)


class Simulation(TorchDispatchMode):
    """Within this context tensors are made fake unless they are small and depend on no fake one.

    Args:
        ledger: counts every storage, fake or real.
    """

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger
        self._fake = FakeTensorMode()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation and count what it made."""
        kwargs = kwargs or {}
        output = self._run(func, args, kwargs)
        for tensor in _tensors(output):
            self._ledger.add(tensor)
        return output

    def without_numbers(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the same shape, strides and dtype; a small one keeps its numbers."""
        if tensor.numel() <= REAL_ELEMENTS:
            self._ledger.add(tensor)
            return tensor
        return self.fake(tensor)

    def fake(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the same shape, strides and dtype without numbers."""
        fake = self._to_fake(tensor)
        self._ledger.add(fake)
        return fake

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensors = [*_tensors(args), *_tensors(kwargs)]
        fakes = sum(isinstance(tensor, FakeTensor) for tensor in tensors)
        if fakes == len(tensors) > 0:  # nearly all, and a step is tens of thousands of them
            return self._on_fakes(func, args, kwargs)
        if fakes:
            return self._fakely(func, self._by_position(func, args), kwargs)
        if tensors and _is_real(func):
            return func(*args, **kwargs)
        output = self._fakely(func, args, kwargs)
        sizes = [tensor.numel() for tensor in _tensors(output)]
        return func(*args, **kwargs) if max(sizes, default=0) <= REAL_ELEMENTS else output

    def _fakely(self, func: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = tree_map_only(torch.Tensor, self._to_fake, (args, kwargs))
        return self._on_fakes(func, args, kwargs)

    def _on_fakes(self, func: Any, args: Any, kwargs: Any) -> Any:
        with self._fake:
            return _grouped_product(*args, **kwargs) if func is _GROUPED else func(*args, **kwargs)

    def _to_fake(self, tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        with self._fake:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)

    def _by_position(self, func: Any, args: Any) -> Any:
        """Turn real masks among the indices into positions: how many there are decides the shape of the output."""
        if func not in _INDEXED:
            return args
        places: list[Any] = []
        for index in args[1]:
            if isinstance(index, torch.Tensor) and index.dtype == torch.bool and not isinstance(index, FakeTensor):
                count = int(index.sum())
                with self._fake:
                    places += [torch.empty(count, dtype=torch.int64) for _ in range(index.dim())]
            else:
                places.append(index)
        return (args[0], places, *args[2:])


def _grouped_product(
    a: torch.Tensor,
    b: torch.Tensor,
    offsets: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return what torch's product over groups of rows makes, which in PyTorch's own simulation takes bfloat16 alone.

    Experts are a group each: rows `(T, K)` and weights `(E, K, N)` make `(T, N)`; the weights' gradient, of `(K, T)`
    and `(T, N)`, is `(E, K, N)`.
    """
    if a.dim() == b.dim() == 2:
        assert offsets is not None
        shape: tuple[int, ...] = (offsets.shape[0], a.shape[0], b.shape[1])
    elif a.dim() == b.dim():
        shape = (a.shape[0], a.shape[1], b.shape[2])
    else:
        shape = (a.shape[-2], b.shape[-1])
    return torch.empty(shape, dtype=out_dtype or a.dtype)


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors among an operation's values; operators nest only lists and mappings."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))


def _is_real(func: Any) -> bool:
    """Whether an operation on real tensors is done really, whatever its size.

    It changes one, only looks at it in another way, hands a value to Python, or makes a shape of its values.
    """
    tags = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
    return func._schema.is_mutable or func.is_view or any(tag in func.tags for tag in tags)
