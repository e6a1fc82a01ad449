"""How often a run draws for each row, as far as its settings say so beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vlm_lora.data.dataset import Splits
from vlm_lora.data.mixture import Mixture
from vlm_lora.data.ocr.task_sampling import ONCE, Span
from vlm_lora.data.split_parts import split_parts, trained_parts


def sampled_epochs(*, num_train_epochs: float, max_steps: int, static_shapes: bool) -> int | None:
    """Return how many epochs draw anew; None where only the number of processes says it (`--max_steps`).

    Planned batch shapes repeat the first epoch's draws.
    """
    if static_shapes:
        return 1
    return None if max_steps > 0 else max(1, math.ceil(num_train_epochs))


def epochs_by_keys(values: Mapping[str, Any], arguments_class: type, *, static_shapes: bool) -> int | None:
    """Return the same by checked keys of the trainer and the defaults of their class."""
    defaults = {field.name: field.metadata.get("default", field.default) for field in fields(arguments_class)}
    given = {**defaults, **values}
    return sampled_epochs(
        num_train_epochs=given["num_train_epochs"], max_steps=given["max_steps"], static_shapes=static_shapes
    )


def draws_known(splits: Splits, epochs: int | None) -> bool:
    """Say whether reading the rows says how long each training row is in every epoch."""
    parts, spans = split_parts(splits), spans_of(splits, epochs)
    return all(spans[name].counted or not parts[name].varies for name in trained_parts(splits))


def spans_of(splits: Splits, epochs: int | None) -> dict[str, Span]:
    """Return how often each data set's rows are drawn, by the names of `split_parts`.

    Evaluation reads the first epoch's. A row of a weight's fraction counts as seen in every epoch: which rows an epoch
    takes depends on those that are left out.
    """
    trained = trained_parts(splits)
    repeats = splits.train.repeats if isinstance(splits.train, Mixture) else (1,) * len(trained)
    spans = {name: Span(epochs=epochs, repeats=count) for name, count in zip(trained, repeats, strict=True)}
    return {name: spans.get(name, ONCE) for name in split_parts(splits)}
