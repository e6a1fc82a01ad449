"""Going on from a checkpoint: which one, whether this run may, and what it changes; before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.values import is_true
from vlm_lora.config.whole_files import read_json
from vlm_lora.model.loading import with_image_backend
from vlm_lora.training.checkpoints.changed_settings import Change, check_allowed, compare
from vlm_lora.training.checkpoints.choosing import asks_for_newest, find_checkpoint, settle_checkpoint
from vlm_lora.training.checkpoints.contents import refuse_to_resume
from vlm_lora.training.checkpoints.pickles import refuse_programs
from vlm_lora.training.checkpoints.run_settings import recorded_setting
from vlm_lora.training.engine import engine_of
from vlm_lora.training.identity.base_model import describe_base
from vlm_lora.training.identity.record import RunIdentity
from vlm_lora.training.identity.versions import versions
from vlm_lora.training.outputs import TRAINED, note_what_is_saved
from vlm_lora.training.run_state import RUN_STATE, RunState


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """Where a run begins."""

    checkpoint: str | None
    """The folder to go on from; None starts afresh."""
    changes: tuple[Change, ...] = ()
    """What is otherwise than in the checkpoint's run, all of it free or allowed."""
    order: str | None = None
    """The checkpoint's `--train_sampling_strategy`; None where the run starts afresh."""
    earlier: RunIdentity | None = None
    """The record of the checkpoint's run; None where there is none."""
    begins_again: bool = False
    """Whether this same run was trained to its end in its folder and cut short behind that, with no checkpoint."""
    features: str = "auto"
    """Whether the checkpoint's run kept features of images (`on`, `off`); `auto` where nothing says it."""


def look_for_checkpoint(run: RunConfig, arguments: Any, settings: Callable[[], Mapping[str, Any]]) -> Resumption:
    """Return the checkpoint to go on from, looked through for all that this run reads, and what changed since.

    Args:
        run: resolved.
        arguments: the training arguments, after `settle_checkpoint`.
        settings: returns the run's effective settings; called only where a checkpoint is there to compare with.

    Raises:
        ConfigError: it holds a program, another engine saved it, or settings, versions or the base model differ that
            may not.
    """
    allowed = check_allowed(run.allow_changed, type(arguments)) if arguments.do_train else frozenset()
    checkpoint = arguments.resume_from_checkpoint
    if checkpoint is not None:
        refuse_programs(Path(checkpoint))
    changes: list[Change] = []
    order = earlier = None
    features = "auto"
    folder = Path(arguments.output_dir)
    begins_again = (
        bool(arguments.do_train)
        and checkpoint is None
        and asks_for_newest(run.raw.get("resume_from_checkpoint"))
        and (folder / TRAINED).is_file()
        and RunState.of(read_json(folder / RUN_STATE)).was_interrupted
    )
    if arguments.do_train:
        if checkpoint is not None:
            refuse_to_resume(Path(checkpoint), engine_of(arguments))
            order = recorded_setting(Path(checkpoint), "train_sampling_strategy")
            features = recorded_setting(Path(checkpoint), "cache_vision_features")
        if checkpoint is not None or begins_again:
            base, adapter = describe_base(run.model)
            now = RunIdentity(settings=settings(), versions=versions(), base_model=base, adapter=adapter)
            changes, earlier = compare(
                Path(checkpoint or folder), now, allowed=allowed, arguments_class=type(arguments)
            )
        note_what_is_saved(arguments)
    return Resumption(
        checkpoint=checkpoint,
        changes=tuple(changes),
        order=order,
        features=features,
        earlier=None if begins_again else earlier,
        begins_again=begins_again,
    )


def with_kept_backend(run: RunConfig, arguments: Any) -> RunConfig:
    """Return a run with `--image_backend auto` settled: as in the checkpoint that it goes on from, where it does.

    That checkpoint is chosen here, and from here on `arguments.resume_from_checkpoint` is its folder or None.

    Args:
        run: resolved.
        arguments: the training arguments.

    Raises:
        ConfigError: there is no such checkpoint, its record cannot be read, or torchvision is not installed.
        ModelError: the model's configuration cannot be loaded.
    """
    checkpoint = settle_checkpoint(arguments)
    recorded = None if checkpoint is None else recorded_setting(Path(checkpoint), "image_backend")
    return with_image_backend(run, checkpoint=recorded if arguments.do_train else None)


def prepared_for(run: RunConfig) -> tuple[RunConfig, Resumption]:
    """Return a run with the image backend, and a beginning with the choice of features, of the run that it prepares.

    Args:
        run: as it was given, with the `--output_dir` and `--resume_from_checkpoint` of the run that it prepares.

    Raises:
        ConfigError: there is no such checkpoint, its record cannot be read, or torchvision is not installed.
        ModelError: the model's configuration cannot be loaded.
    """
    folder, resume = run.raw.get("output_dir"), run.raw.get("resume_from_checkpoint")
    trains = is_true(run.raw.get("do_train")) and folder is not None
    found = find_checkpoint(Path(str(folder)), resume, quiet=True, sets_aside=False) if trains else None
    if found is None:
        return run, Resumption(checkpoint=None)
    backend, features = (recorded_setting(Path(found), name) for name in ("image_backend", "cache_vision_features"))
    return with_image_backend(run, checkpoint=backend), Resumption(checkpoint=None, features=features)
