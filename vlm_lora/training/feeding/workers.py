"""As many loader workers as a run's rows can use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def fit_workers(arguments: Any, values: Mapping[str, Any], *, train: int, validation: int) -> None:
    """Start no more loader workers than there are batches to make ahead, where their number is the backend's choice.

    The first batch is waited for in any case: a worker for it only costs the time to start.

    Args:
        arguments: the training arguments, as the backend built them; changed in place.
        values: the arguments that were set.
        train: rows to train on.
        validation: rows to evaluate on.
    """
    if "dataloader_num_workers" in values or arguments.dataloader_prefetch_factor is not None:
        return
    sizes = ((train, arguments.train_batch_size), (validation, arguments.eval_batch_size))
    batches = max(math.ceil(rows / (size * arguments.world_size)) for rows, size in sizes)
    arguments.dataloader_num_workers = min(arguments.dataloader_num_workers, max(0, batches - 1))
