"""Saving and rotating checkpoints: only those on the folder's list (`run_files.json`) are counted, and removed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from vlm_lora.errors import ConfigError
from vlm_lora.training.checkpoints.choosing import is_whole
from vlm_lora.training.checkpoints.run_record import (
    RECORD,
    note_checkpoint,
    numbered_checkpoints,
    read_record,
    remove_checkpoint,
    write_record,
)
from vlm_lora.training.checkpoints.sealing import begin_checkpoint, prepare_seal

logger = logging.getLogger(__name__)

_SENTINEL = "checkpoint-is-incomplete.txt"
"""transformers' `--enable_jit_checkpoint` makes the folder with this file in it before the checkpoint is saved."""


def begin_saving(trainer: Any, path: Path) -> None:
    """Put the checkpoint that is about to be saved on the list, and make its folder.

    Args:
        trainer: every rank calls this; those that save write the list.
        path: of the checkpoint, in the output folder.

    Raises:
        ConfigError: the place is taken by a folder that is on no list.
    """
    if trainer.args.should_save:
        _make_room(path.parent, path.name)
        begin_checkpoint(path, trainer.args)
    # What lay there must be gone before another rank writes its part.
    trainer.accelerator.wait_for_everyone()


def end_saving(trainer: Any, path: Path, limit: int | None, connection: Any = None) -> Callable[[], None]:
    """Return what gives a checkpoint its manifest, and then removes older ones; any thread may call it.

    Args:
        trainer: every rank calls this once it has written its part.
        path: as for `begin_saving`.
        limit: `--save_total_limit`.
        connection: as for `Meeting`.
    """
    arguments, best = trainer.args, trainer.state.best_model_checkpoint
    seal = prepare_seal(path, arguments, connection)

    def end() -> None:
        # A rank that still writes its part may be killed: until all are done the older checkpoints are needed.
        seal()
        if arguments.should_save:
            rotate(path.parent, limit, best=None if best is None else Path(best).name)

    return end


def rotate(folder: Path, limit: int | None, *, best: str | None) -> None:
    """Remove the run's oldest checkpoints beyond `limit`, never the newest, nor the best.

    As in transformers, with limit 1 and a best that is not the newest, two remain. Checkpoints whose saving was cut
    short, or whose files are not of the size that they had, do not count, and are removed.

    Args:
        folder: the output folder.
        limit: how many to keep; all where it is None or below 1.
        best: the name of the best one.
    """
    listed = read_record(folder).checkpoints or ()
    if limit is None or limit < 1 or not listed or not is_whole(folder / listed[-1]):
        return
    whole = [name for name in listed if is_whole(folder / name)]
    gone = [name for name in listed if name not in whole] + surplus(whole, limit, best)
    for name in gone:
        logger.info("--save_total_limit %d: %s is removed.", limit, folder / name)
        try:
            remove_checkpoint(folder / name)
        except OSError as error:
            # The training is worth more than the room; the name stays on the list for the next time.
            logger.warning("%s cannot be removed: %s.", folder / name, error.strerror)
    if gone:
        write_record(folder, read_record(folder))


def surplus(names: Sequence[str], limit: int, best: str | None) -> list[str]:
    """Return those of `names`, oldest first, that are beyond `limit`; never the last one, nor the best."""
    kept = {names[-1], *(name for name in names if name == best)}
    count = len(names) - max(limit, len(kept))
    return [name for name in names if name not in kept][: max(count, 0)]


class NothingInTheWay(TrainerCallback):
    """Ends a run before its first step where it would save over a checkpoint of another run."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look for checkpoints between here and the last step that are on no list.

        Raises:
            ConfigError: names them.
        """
        record = read_record(Path(args.output_dir))
        ahead = [
            path
            for number, path in numbered_checkpoints(Path(args.output_dir))
            if state.global_step < number <= state.max_steps and not record.lists(path.name)
        ]
        if ahead:
            raise _in_the_way(ahead)


def _in_the_way(paths: Sequence[Path]) -> ConfigError:
    return ConfigError(
        f"{', '.join(map(str, paths[:4]))}: no run on record in this folder ({RECORD}) saved this, and this run would "
        "save a checkpoint over it. Move it elsewhere, or type another --output_dir."
    )


def _make_room(folder: Path, name: str) -> None:
    """Put a checkpoint on the list and remove what an earlier start left under its name: the two must never mix."""
    path = folder / name
    if read_record(folder).lists(name):
        note_checkpoint(folder, name)
        remove_checkpoint(path)
        return
    others = path.is_dir() and any(child.name != _SENTINEL for child in path.iterdir())
    if others or path.is_symlink() or path.is_file():
        raise _in_the_way([path])
    folder.mkdir(parents=True, exist_ok=True)
    note_checkpoint(folder, name)
