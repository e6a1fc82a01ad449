"""What training really allocates: PyTorch's own allocator tells its profiler of every byte it gives and takes back."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from typing import Any

import torch


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of tensors, those that share a storage counted once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def highest_on_cpu(action: Callable[[], Any]) -> int:
    """Run `action` and return the most bytes that were allocated at once since it began."""
    gc.collect()  # what an earlier measurement has left would be taken back during this one
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        action()
    profiler: Any = profile.profiler
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    now = peak = 0
    for event in events:
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def watch_training(build: Callable[..., Any], found: dict[str, Any]) -> Callable[..., Any]:
    """Return a `build_trainer` whose trainers write their peak in bytes to `found["measured"]`.

    On a GPU that is the allocator's own figure, on a CPU weights and buffers with `highest_on_cpu`.
    """

    def watched(*args: Any, **kwargs: Any) -> Any:
        trainer = build(*args, **kwargs)
        train = trainer.train

        def measured(**keywords: Any) -> Any:
            model = trainer.model
            found["parameters"] = sum(parameter.numel() for parameter in model.parameters())
            outputs: list[Any] = []
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
                outputs.append(train(**keywords))
                found["measured"] = torch.cuda.max_memory_allocated()
            else:
                there = storage_bytes([*model.parameters(), *model.buffers()])
                found["measured"] = there + highest_on_cpu(lambda: outputs.append(train(**keywords)))
            return outputs[0]

        trainer.train = measured
        return trainer

    return watched
