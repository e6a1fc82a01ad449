"""What `torch.hpu` offers: one device per process, its memory, streams and random numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hpu_simulator.library import reset_peak, statistics

from habana_frameworks.torch.hpu import graphs, metrics, random
from habana_frameworks.torch.hpu.random import (
    get_rng_state,
    get_rng_state_all,
    initial_seed,
    manual_seed,
    manual_seed_all,
    seed,
    seed_all,
    set_rng_state,
    set_rng_state_all,
)

MEMORY_LIMIT = 96 * 2**30
"""What a Gaudi2 card has; the host's memory is what really limits."""

HPUGraph = graphs.HPUGraph
default_generators = (torch.default_generator,)


def is_available() -> bool:
    """True: the simulated device is always there."""
    return True


def is_initialized() -> bool:
    """True: there is nothing to initialize."""
    return True


def init() -> None:
    """Nothing to do."""


_lazy_init = init  # what torch calls before the first tensor


def _is_in_bad_fork() -> bool:
    """Host memory survives a fork."""
    return False


def device_count() -> int:
    """Cards of the simulated machine; each process uses one."""
    return int(os.environ.get("HPU_SIMULATOR_CARDS", "8"))


def current_device() -> int:
    """Each process has one device, number 0."""
    return 0


def set_device(device: Any) -> None:
    """Nothing to choose."""


def get_device_name(device: Any = None) -> str:
    """Name the device for what it is."""
    return "GAUDI2 (simulated on the CPU)"


def get_device_properties(device: Any = None) -> str:
    """Describe the device."""
    return f"(name='{get_device_name()}', memory={MEMORY_LIMIT})"


def get_device_capability(device: Any = None) -> str:
    """Name the Synapse version that the stand-in follows."""
    return "1.24.0"


class device:
    """A context that selects a device; there is one."""

    def __init__(self, device: Any) -> None:
        self.idx = 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        pass


class Stream(torch.Stream):
    """A stream; the simulated device has only the default one."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__new__(cls, device="hpu")


class Event(torch.Event):
    """An event on the default stream."""

    def __new__(cls, enable_timing: bool = False, **kwargs: Any) -> Any:
        return super().__new__(cls, device="hpu", enable_timing=enable_timing)


def current_stream(device: Any = None) -> Stream:
    """Return the default stream."""
    return Stream()


def default_stream(device: Any = None) -> Stream:
    """Return the default stream."""
    return Stream()


def set_stream(stream: Any) -> None:
    """Nothing to choose."""


@contextmanager
def stream(stream: Any) -> Iterator[None]:
    """Run on a stream; there is one."""
    yield


def synchronize(device: Any = None) -> None:
    """Run what was recorded."""
    from hpu_simulator.library import mark_step

    mark_step()


def empty_cache() -> None:
    """Nothing is cached."""


def memory_stats(device: Any = None) -> dict[str, int]:
    """Return the vendor's figures, in bytes."""
    figures = statistics()
    return {"Limit": MEMORY_LIMIT, "InUse": figures.in_use, "MaxInUse": figures.peak, "NumAllocs": 0, "NumFrees": 0}


def memory_allocated(device: Any = None) -> int:
    """Bytes in use."""
    return statistics().in_use


def max_memory_allocated(device: Any = None) -> int:
    """Bytes at the peak."""
    return statistics().peak


def memory_reserved(device: Any = None) -> int:
    """Bytes in use: nothing more is reserved."""
    return statistics().in_use


max_memory_reserved = max_memory_allocated
memory_cached = memory_reserved
max_memory_cached = max_memory_allocated


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Return free and total bytes."""
    return MEMORY_LIMIT - statistics().in_use, MEMORY_LIMIT


def reset_peak_memory_stats(device: Any = None) -> None:
    """Start the peak anew."""
    reset_peak()


reset_max_memory_allocated = reset_peak_memory_stats


def is_bf16_supported() -> bool:
    """True, as on every Gaudi."""
    return True


def is_autocast_hpu_enabled() -> bool:
    """Say whether autocast is on."""
    return torch.is_autocast_enabled("hpu")


def get_autocast_hpu_dtype() -> torch.dtype:
    """Return autocast's dtype."""
    return torch.get_autocast_dtype("hpu")


def get_amp_supported_dtype() -> list[torch.dtype]:
    """Return the dtypes that autocast can use."""
    return [torch.bfloat16, torch.float32]


def enable_dynamic_shape() -> None:
    """Not modelled: every new shape compiles."""


def disable_dynamic_shape() -> None:
    """Not modelled: every new shape compiles."""


@contextmanager
def sdp_kernel(enable_recompute: bool = False) -> Iterator[None]:
    """Choose the fused attention's recompute mode; the numbers are the same."""
    yield


def wrap_in_hpu_graph(module: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the module: capture and replay give the same numbers."""
    return module


class ModuleCacher:
    """Captures a module's graphs; the numbers are the same."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the model as it is."""
        return model


__all__ = [
    "Event",
    "HPUGraph",
    "ModuleCacher",
    "Stream",
    "current_device",
    "device",
    "device_count",
    "get_rng_state",
    "get_rng_state_all",
    "graphs",
    "initial_seed",
    "is_available",
    "manual_seed",
    "manual_seed_all",
    "metrics",
    "random",
    "seed",
    "seed_all",
    "set_rng_state",
    "set_rng_state_all",
    "wrap_in_hpu_graph",
]
