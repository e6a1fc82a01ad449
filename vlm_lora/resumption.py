"""Going on from a checkpoint: which one, whether this run may, and what it changes; before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_lora.model.loading import load_config
from vlm_lora.session import Stage, wants_static_shapes
from vlm_lora.training.checkpoints.carried_over import CarriedOver
from vlm_lora.training.checkpoints.changed_settings import Change, check_allowed, compare
from vlm_lora.training.checkpoints.contents import refuse_to_resume
from vlm_lora.training.checkpoints.pickles import refuse_programs
from vlm_lora.training.checkpoints.run_settings import effective_settings
from vlm_lora.training.engine import engine_of
from vlm_lora.training.outputs import find_checkpoint, note_what_is_saved


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """Where a run begins."""

    checkpoint: str | None
    """The folder to go on from; None starts afresh."""
    changes: tuple[Change, ...] = ()
    """What is otherwise than in the checkpoint's run, all of it free or allowed."""


def look_for_checkpoint(stage: Stage) -> Resumption:
    """Return the checkpoint to go on from, looked through for all that this run reads, and what changed since.

    Raises:
        ConfigError: there is none, it holds a program, another engine saved it, or settings differ that may not.
    """
    arguments, run = stage.arguments, stage.run
    allowed = check_allowed(run.allow_changed, type(arguments)) if arguments.do_train else frozenset()
    checkpoint = find_checkpoint(Path(arguments.output_dir), arguments.resume_from_checkpoint)
    if checkpoint is not None:
        refuse_programs(Path(checkpoint))
    changes: list[Change] = []
    if arguments.do_train:
        if checkpoint is not None:
            refuse_to_resume(Path(checkpoint), engine_of(arguments))
            now = settings_of(stage)
            changes = compare(Path(checkpoint), now, allowed=allowed, arguments_class=type(arguments))
        note_what_is_saved(arguments)
    return Resumption(checkpoint=checkpoint, changes=tuple(changes))


def carried_over(stage: Stage, resumption: Resumption) -> CarriedOver:
    """Return what keeps this run's settings in its checkpoints; call it before the trainer has the arguments."""
    return CarriedOver(settings_of(stage), resumption.changes)


def settings_of(stage: Stage) -> dict[str, Any]:
    """Return a run's effective settings; choices that were left open are settled by its model and hardware."""
    run = stage.run
    settled: dict[str, Any] = {
        "backend": stage.backend.name,
        "static_shapes": wants_static_shapes(run, stage.backend),
    }
    if run.model.model_name_or_path is not None:
        keywords = stage.model_keywords
        text = load_config(run.model).get_text_config()
        settled |= {
            "dtype": keywords["torch_dtype"],
            "attn_implementation": keywords["attn_implementation"],
            "bnb_4bit_compute_dtype": getattr(
                keywords.get("quantization_config"), "bnb_4bit_compute_dtype", run.model.bnb_4bit_compute_dtype
            ),
            "max_length": run.batching.max_length or getattr(text, "max_position_embeddings", None),
        }
    return effective_settings(run, stage.arguments, settled=settled, values=stage.values)
