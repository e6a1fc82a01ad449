"""`hccl` over gloo: takes hpu tensors only, works on the same memory, waits at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _create_work_from_future
from torch.futures import Future


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type != "hpu":
        raise RuntimeError(f"hccl works on hpu tensors, not on {tensor.device}")
    return torch.ops.hpu_simulator.cpu_alias(tensor)


def _done(value: Any) -> Any:
    future: Future = Future()
    future.set_result(value)
    return _create_work_from_future(future)


class SimulatedHccl(dist.ProcessGroup):
    """The collectives that DDP, DeepSpeed and accelerate use."""

    def __init__(self, store: Any, rank: int, size: int, timeout: Any) -> None:
        super().__init__(rank, size)
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)
        self._rank, self._size = rank, size

    def getBackendName(self) -> str:
        """Name the backend as the vendor does."""
        return "hccl"

    @property
    def pg_name(self) -> str:
        """Return the name that torch gave this group."""
        return dist.distributed_c10d._world.pg_names[self]

    @property
    def group_name(self) -> str:
        """Return the name that torch gave this group."""
        return self.pg_name

    def barrier(self, opts: Any = None) -> Any:
        """Wait for all ranks."""
        self._gloo.barrier().wait()
        return _done(None)

    def broadcast(self, tensors: list[torch.Tensor], opts: Any = None) -> Any:
        """Copy from the root."""
        self._gloo.broadcast([_alias(t) for t in tensors], opts or dist.BroadcastOptions()).wait()
        return _done(tensors)

    def allreduce(self, tensors: list[torch.Tensor], opts: Any = None) -> Any:
        """Reduce over all ranks."""
        opts = opts or dist.AllreduceOptions()
        average, opts = _without_average(opts, dist.AllreduceOptions)
        aliases = [_alias(t) for t in tensors]
        self._gloo.allreduce(aliases, opts).wait()
        if average:
            for alias in aliases:
                alias.div_(self._size)
        return _done(tensors)

    def allreduce_coalesced(self, tensors: list[torch.Tensor], opts: Any = None) -> Any:
        """Reduce several tensors."""
        for tensor in tensors:
            self.allreduce([tensor], opts)
        return _done(tensors)

    def reduce(self, tensors: list[torch.Tensor], opts: Any = None) -> Any:
        """Reduce to the root."""
        opts = opts or dist.ReduceOptions()
        average, opts = _without_average(opts, dist.ReduceOptions)
        aliases = [_alias(t) for t in tensors]
        self._gloo.reduce(aliases, opts).wait()
        if average and self._rank == opts.rootRank:
            for alias in aliases:
                alias.div_(self._size)
        return _done(tensors)

    def allgather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], opts: Any = None) -> Any:
        """Gather on all ranks."""
        aliases = [[_alias(t) for t in row] for row in outputs]
        self._gloo.allgather(aliases, [_alias(t) for t in inputs]).wait()
        return _done(outputs)

    def _allgather_base(self, output: torch.Tensor, tensor: torch.Tensor, opts: Any = None) -> Any:
        parts = list(_alias(output).view(-1).chunk(self._size))
        gathered = [torch.empty_like(part) for part in parts]
        self._gloo.allgather([gathered], [_alias(tensor).reshape(-1).contiguous()]).wait()
        for part, values in zip(parts, gathered, strict=True):
            part.copy_(values)
        return _done(output)

    all_gather_single = _allgather_base  # its public name since torch 2.12

    def allgather_into_tensor_coalesced(
        self, outputs: list[torch.Tensor], inputs: list[torch.Tensor], opts: Any = None
    ) -> Any:
        """Gather several tensors."""
        for output, tensor in zip(outputs, inputs, strict=True):
            self._allgather_base(output, tensor)
        return _done(outputs)

    def _reduce_scatter_base(self, output: torch.Tensor, tensor: torch.Tensor, opts: Any = None) -> Any:
        whole = _alias(tensor).reshape(-1).clone()
        self._reduce(whole, opts)
        _alias(output).view(-1).copy_(whole.chunk(self._size)[self._rank])
        return _done(output)

    reduce_scatter_single = _reduce_scatter_base

    def reduce_scatter(self, outputs: list[torch.Tensor], inputs: list[list[torch.Tensor]], opts: Any = None) -> Any:
        """Reduce, each rank keeps its own part."""
        for output, parts in zip(outputs, inputs, strict=True):
            whole = torch.stack([_alias(part) for part in parts])
            self._reduce(whole, opts)
            _alias(output).copy_(whole[self._rank])
        return _done(outputs)

    def reduce_scatter_tensor_coalesced(
        self, outputs: list[torch.Tensor], inputs: list[torch.Tensor], opts: Any = None
    ) -> Any:
        """Reduce and scatter several tensors."""
        for output, tensor in zip(outputs, inputs, strict=True):
            self._reduce_scatter_base(output, tensor, opts)
        return _done(outputs)

    def gather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], opts: Any = None) -> Any:
        """Gather on the root."""
        aliases = [[_alias(t) for t in row] for row in outputs]
        self._gloo.gather(aliases, [_alias(t) for t in inputs], opts or dist.GatherOptions()).wait()
        return _done(outputs)

    def scatter(self, outputs: list[torch.Tensor], inputs: list[list[torch.Tensor]], opts: Any = None) -> Any:
        """Scatter from the root."""
        aliases = [[_alias(t) for t in row] for row in inputs]
        self._gloo.scatter([_alias(t) for t in outputs], aliases, opts or dist.ScatterOptions()).wait()
        return _done(outputs)

    def _reduce(self, whole: torch.Tensor, opts: Any) -> None:
        reduction = dist.AllreduceOptions()
        reduction.reduceOp = opts.reduceOp if opts is not None else dist.ReduceOp.SUM
        average, reduction = _without_average(reduction, dist.AllreduceOptions)
        self._gloo.allreduce([whole], reduction).wait()
        if average:
            whole.div_(self._size)


def _without_average(opts: Any, kind: Callable[[], Any]) -> tuple[bool, Any]:
    """Gloo has no average: sum, and say that the caller must divide."""
    if opts.reduceOp != dist.ReduceOp.AVG:
        return False, opts
    summed = kind()
    if hasattr(opts, "rootRank"):
        summed.rootRank = opts.rootRank
    summed.reduceOp = dist.ReduceOp.SUM
    return True, summed


def register() -> None:
    """Make `init_process_group("hccl")` work."""
    if hasattr(dist.Backend, "HCCL"):
        return
    dist.Backend.register_backend("hccl", SimulatedHccl, devices=["hpu"])
