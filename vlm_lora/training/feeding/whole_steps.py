"""Data that is small beside one step: a training without a step is refused, an epoch of one update is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vlm_lora.data.wording import counted
from vlm_lora.errors import ConfigError


def check_first_step(sizes: Sequence[int], arguments: Any, *, unit: str) -> None:
    """Refuse `--dataloader_drop_last` where it drops all that is there, before the weights are loaded.

    Args:
        sizes: how many rows or packs may share a batch: one number, or one for each planned shape.
        arguments: the training arguments.
        unit: `row` or `pack`.

    Raises:
        ConfigError: says how many there are, how many a step needs, and what to type.
    """
    processes = arguments.world_size
    step = arguments.train_batch_size * processes
    most = max(sizes, default=0)
    if not arguments.dataloader_drop_last or most >= step:
        return
    there = counted(most, unit) + (" of one shape at most" if len(sizes) > 1 else "")
    fits = most // (processes * (arguments.train_batch_size // arguments.per_device_train_batch_size))
    smaller = f"--per_device_train_batch_size {fits} or " if fits else ""
    raise ConfigError(
        f"--dataloader_drop_last true: {there}, a step needs {step} (--per_device_train_batch_size "
        f"{arguments.per_device_train_batch_size}, {counted(processes, 'process', 'processes')}), so none would be "
        f"made. Type {smaller}--dataloader_drop_last false."
    )


def few_packs(packs: int, rows: int, arguments: Any) -> str | None:
    """Return what to say where an epoch has one update and a smaller batch is better; None where none is.

    The batch size is proposed that has about as many rows an update as its number would without packing.

    Args:
        packs: of an epoch.
        rows: of an epoch.
        arguments: the training arguments.
    """
    batch, accumulated = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    devices = arguments.world_size * (arguments.train_batch_size // batch)
    if packs > batch * devices * accumulated or (packs <= devices and batch == 1):
        return None
    step = batch * devices
    filled = 0 if arguments.dataloader_drop_last else math.ceil(packs / step) * step - packs
    fillers = f", {counted(filled, 'filler pack')} beside them" if filled else ""
    said = (
        f"An epoch is one update of {counted(packs, 'pack')}{fillers}: --per_device_train_batch_size {batch} counts "
        "packs, not rows."
    )
    if packs <= devices:
        return f"{said} Type --per_device_train_batch_size 1; for more updates, a shorter --pack_length as well."
    steps = min(accumulated, (packs - 1) // devices)
    size = max(1, min(round(batch * packs / rows), (packs - 1) // (devices * steps)))
    fewer = f" --gradient_accumulation_steps {steps}" if steps < accumulated else ""
    return f"{said} For more updates type --per_device_train_batch_size {size}{fewer}."
