"""The batch shapes of a run: surveyed by one process per machine, read by the others."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_lora.batching.shape_survey import Survey
from vlm_lora.config.whole_files import replacing

logger = logging.getLogger(__name__)

FILE = "shape_plan.json"

GRAPHS_PER_TRAINING_SHAPE = 2
"""Forward and backward, once where gradients are new and once where they add to those of the micro-batch before."""
GRAPHS_PER_EVALUATION_SHAPE = 1
GRAPHS_BESIDE = 12
"""Clip and optimizer step (the first one makes its state), logging, checks of the first pass, the final sums."""


def shared_survey(folder: Path, arguments: Any, survey: Callable[[], Survey]) -> Survey:
    """Return the run's survey; all processes of a machine get the same one, through `folder`.

    Args:
        folder: the output folder; `shape_plan.json` is written there.
        arguments: the training arguments, which know the processes.
        survey: makes it.
    """
    return Survey.from_mapping(shared_values(folder / FILE, arguments, lambda: survey().to_mapping()))


def shared_values(path: Path, arguments: Any, make: Callable[[], Any]) -> Any:
    """Return what one process of each machine makes and writes to the JSON file `path`."""
    with arguments.main_process_first(desc=f"making {path.name}"):
        if arguments.local_process_index == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps(make())
            with replacing(path) as stream:  # several machines may share the folder
                stream.write(content.encode())
    return json.loads(path.read_text(encoding="utf-8"))


def announce(survey: Survey, arguments: Any, *, compiles: bool) -> int:
    """Log shapes, padding, fillers and the budget of graphs; return the budget.

    Args:
        survey: the batch shapes.
        arguments: the training arguments.
        compiles: the hardware makes graphs of whole steps (`Traits.counts_graphs`).
    """
    shapes = len(survey.plan.shapes)
    budget = compile_budget(survey.groups, arguments)
    said = f" At most {budget} graphs will be compiled in lazy mode." if compiles else ""
    if arguments.torch_compile:
        said = f" At most {budget} graphs of each piece of the model's code will be made by torch.compile."
    logger.info(
        "Batch shapes: %d, of %s tokens; padding %.1f %% of the tokens, fillers %.1f %% of the rows.%s",
        shapes,
        ", ".join(str(length) for length in sorted({shape.length for shape in survey.plan.shapes})),
        survey.plan.padding_share * 100,
        _filler_share(survey.groups, arguments) * 100,
        said,
    )
    return budget


def compile_budget(groups: Mapping[str, Sequence[Sequence[int]]], arguments: Any) -> int:
    """Return how many graphs may be compiled over the whole run: in lazy mode in all, by torch.compile of each code."""
    training, evaluation = (len(groups.get(split, ())) for split in ("train", "validation"))
    if arguments.torch_compile:  # forward and backward are one; whether gradients add up is not seen
        return training + evaluation
    per_shape = GRAPHS_PER_TRAINING_SHAPE if arguments.gradient_accumulation_steps > 1 else 1
    return training * per_shape + evaluation * GRAPHS_PER_EVALUATION_SHAPE + GRAPHS_BESIDE


def _filler_share(groups: Mapping[str, Sequence[Sequence[int]]], arguments: Any) -> float:
    sizes = {"train": arguments.train_batch_size, "validation": arguments.eval_batch_size}
    rows = sum(len(group) for own in groups.values() for group in own)
    steps = {name: size * arguments.world_size for name, size in sizes.items()}
    filled = sum(math.ceil(len(group) / steps[name]) * steps[name] for name, own in groups.items() for group in own)
    return 1 - rows / filled
