"""How a shape's vision tower compares with its language model: CPU time of a forward pass each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.contenders import PlainCollator, read_rows


def tower_share(model_folder: Path, data: Path, *, batch_size: int, times: int = 5) -> float:
    """Return the tower's forward pass over the language model's, in CPU time, for one batch of rows."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    torch.set_num_threads(1)
    model = AutoModelForImageTextToText.from_pretrained(model_folder).eval()
    batch = PlainCollator(AutoProcessor.from_pretrained(model_folder))(read_rows(data)[:batch_size])
    batch.pop("labels")
    features: dict[str, Any] = {"pixel_values": batch["pixel_values"]}
    if "image_grid_thw" in batch:
        features["image_grid_thw"] = batch["image_grid_thw"]
    with torch.no_grad():
        tower = _median(lambda: model.model.get_image_features(**features), times)
        whole = _median(lambda: model(**batch), times)
    return tower / (whole - tower)


def _median(call: Callable[[], object], times: int) -> float:
    call()
    taken = []
    for _ in range(times):
        began = time.process_time()
        call()
        taken.append(time.process_time() - began)
    return statistics.median(taken)
