"""`import habana_frameworks.torch.distributed.hccl` registers the backend and reads the launcher's variables."""

from __future__ import annotations

import os

from hpu_simulator.collectives import register

_FROM_MPI = {
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "RANK": "OMPI_COMM_WORLD_RANK",
}


def _take_over_mpi() -> None:
    for name, source in _FROM_MPI.items():
        if source in os.environ:
            os.environ[name] = os.environ[source]


def initialize_distributed_hpu(
    world_size: int | None = None, rank: int | None = None, local_rank: int | None = None
) -> tuple[int, int, int]:
    """Return world size, rank and local rank (-1 without a launcher)."""
    _take_over_mpi()
    return (
        world_size if world_size is not None else int(os.environ.get("WORLD_SIZE", "1")),
        rank if rank is not None else int(os.environ.get("RANK", "-1")),
        local_rank if local_rank is not None else int(os.environ.get("LOCAL_RANK", "-1")),
    )


_take_over_mpi()
register()
