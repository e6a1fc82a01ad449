"""Room on the disk: how much a checkpoint needs, whether it is there, and one message where a disk takes no more."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from vlm_lora.errors import DiskError, UserError
from vlm_lora.training.checkpoints.choosing import is_whole
from vlm_lora.training.checkpoints.run_record import numbered_checkpoints, read_record, remove_checkpoint, write_record
from vlm_lora.training.checkpoints.saving import whole_size
from vlm_lora.training.engine import shards_weights

logger = logging.getLogger(__name__)

_REFUSALS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota on that disk is used up",
    errno.EROFS: "the disk is mounted for reading only",
    errno.EIO: "the disk reports an error (EIO)",
    errno.EFBIG: "a file may not grow so large there (ulimit -f, or the file system)",
}
"""What a disk that takes nothing says, and what it means."""

_TOLD_IN_TEXT = re.compile(r"\(os error (\d+)\)")
"""How Rust's libraries (safetensors, tokenizers) name an errno: their exceptions are no OSError."""

_TORCH = re.compile(
    "PytorchStreamWriter failed writing|inline_container.*(?:file write failed|unexpected pos)|iostream error", re.S
)
"""What torch.save says; it names no errno."""

_SHARED = re.compile(r"</torch_\w+>.*\((\d+)\)\s*$", re.S)
"""What torch says of memory that processes share, which lies in files of `SHARED_MEMORY`."""

SHARED_MEMORY = Path("/dev/shm")

_STATES = {"sgd": 0, "adafactor": 0, "lion": 1, "adagrad": 1, "rmsprop": 1}
"""Numbers that an optimizer keeps of each trained weight, by how its name begins; Adam's two where none fits."""

_SHARDED = 12
"""Bytes of each trained weight that an engine saves which shards the optimizer: a copy and Adam's two, in 4 bytes."""

_SMALL = 100_000
"""Bytes of what else a checkpoint holds: generators, settings, the chat template, the trainer's state, the manifest."""


def shared_refusal(error: BaseException) -> str | None:
    """Return why memory to share with other processes could not be made; None for other errors."""
    told = _SHARED.search(str(error)) if isinstance(error, RuntimeError) else None
    return None if told is None else _REFUSALS.get(int(told[1]), os.strerror(int(told[1])))


def refusal(error: BaseException | None) -> str | None:
    """Return what a disk means that did not take what was written; None where that is not what `error` is about."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        number = error.errno if isinstance(error, OSError) else None
        if number is None and (told := _TOLD_IN_TEXT.search(str(error))):
            number = int(told[1])
        if number in _REFUSALS:
            return _REFUSALS[number]
        if isinstance(error, RuntimeError) and _TORCH.search(str(error)):
            return "the disk did not take all of a file (full, or a quota)"
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def explained(folder: Callable[[], Path | None], needed: Callable[[], int | None] = lambda: None) -> Iterator[None]:
    """Turn the error of a disk that takes nothing more into one message, whoever wrote.

    Args:
        folder: where a run writes, where the error does not name a file; None where it is not known.
        needed: bytes of what was being written, where it is known.

    Raises:
        DiskError: with the place, its free bytes, and those needed.
    """
    try:
        yield
    except Exception as error:
        if (shared := shared_refusal(error)) is not None:
            raise DiskError(
                f"{SHARED_MEMORY} cannot take what this process shares with those that load its rows: {shared}. "
                f"{_free(SHARED_MEMORY):,} bytes are free there.{_kept(folder())} Give a container more of it (docker "
                "run --shm-size 8g; in Kubernetes an emptyDir of medium Memory mounted there), raise ulimit -f, or "
                "type --dataloader_num_workers 0."
            ) from error
        why = refusal(error)
        if why is None or isinstance(error, UserError):  # the latter says already what it is about
            raise
        named = getattr(error, "filename", None)
        place = Path(os.fsdecode(named)) if isinstance(named, (str, bytes)) else folder() or Path.cwd()
        size = needed()
        wanted = "" if size is None else f", and a checkpoint needs about {size:,}"
        raise DiskError(
            f"{place} cannot be written: {why}. {_free(place):,} bytes are free there{wanted}.{_kept(folder())} Make "
            "room there, or move the folder to a larger disk; then the same command with --resume_from_checkpoint auto."
        ) from error


def _kept(folder: Path | None) -> str:
    """Say which checkpoint is the last whole one."""
    whole = [] if folder is None else [path for _, path in numbered_checkpoints(folder) if is_whole(path)]
    return f" {whole[-1].name} is whole and kept." if whole else " No checkpoint was saved before."


def _free(path: Path) -> int:
    """Return the bytes that this user may still write where `path` is, or will be."""
    place = next(there for there in (path, *path.absolute().parents) if there.exists())
    return shutil.disk_usage(place).free


def checkpoint_size(trainer: Any) -> int:
    """Return about how many bytes a checkpoint has: weights, tokenizer, the optimizer's state as it is or will be.

    It is the size on disk of all processes' parts.
    """
    model, arguments = trainer.model, trainer.args
    trained = sum(whole_size(weight) for weight in model.parameters() if weight.requires_grad)
    weights = final_size(trainer)
    if arguments.save_only_model:
        return weights
    if trainer.is_deepspeed_enabled or shards_weights(trainer):
        return weights + _SHARDED * trained
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    state = [value for kept in getattr(optimizer, "state", {}).values() for value in _tensors(kept)]
    if state:
        return weights + sum(value.numel() * value.element_size() for value in state)
    name = str(getattr(arguments.optim, "value", arguments.optim))
    each = next((count for start, count in _STATES.items() if name.startswith(start)), 2)
    return weights + each * trained * (1 if "8bit" in name else 4)


def final_size(trainer: Any) -> int:
    """Return about how many bytes a run's end saves: the weights, and what is needed beside them to use them."""
    processor = trainer.processing_class
    return weights_size(trainer.model) + tokenizer_size(getattr(processor, "tokenizer", processor)) + _SMALL


@lru_cache(maxsize=1)
def tokenizer_size(tokenizer: Any) -> int:
    """Return the bytes of a fast tokenizer's file, which an adapter's checkpoint may well consist of (Gemma3: 33 MB).

    Writing it out takes about half a second where the vocabulary is large: done once.
    """
    fast = getattr(tokenizer, "backend_tokenizer", None)
    return 0 if fast is None else len(fast.to_str(pretty=True).encode())


def weights_size(model: Any) -> int:
    """Return the bytes of what is saved of a model: an adapter's tensors, or all weights."""
    alone = hasattr(model, "peft_config")
    saved = [weight for weight in model.parameters() if weight.requires_grad or not alone]
    return sum(whole_size(weight) * weight.element_size() for weight in saved)


def _tensors(kept: Any) -> list[Any]:
    return [value for value in kept.values() if hasattr(value, "element_size")] if isinstance(kept, dict) else []


class RoomAhead(TrainerCallback):
    """Makes sure before the first step that there is room for what the run will save."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the disk of the output folder.

        Raises:
            DiskError: not even one checkpoint and the final weights fit.
        """
        if not args.should_save:
            return
        folder, kept = Path(args.output_dir), planned(self._trainer)
        one, last = checkpoint_size(self._trainer), final_size(self._trainer)
        least, all_of_them = min(kept, 1) * one + last, kept * one + last
        free = _free(folder)
        if free < least:
            what = f"a checkpoint of about {one:,} and the final weights" if kept else "the final weights"
            raise DiskError(
                f"--output_dir {folder}: {free:,} bytes are free there, and this run needs {least:,} at least: {what}. "
                "Make room, or type another --output_dir."
            )
        if free < all_of_them:
            logger.warning(
                "--output_dir %s: %s bytes are free there, and the checkpoints that this run keeps (%d of about %s) "
                "need %s. To keep fewer: --save_total_limit 2 (and then one more while it saves).",
                folder,
                f"{free:,}",
                kept,
                f"{one:,}",
                f"{all_of_them:,}",
            )


def planned(trainer: Any) -> int:
    """Return how many checkpoints a run will have at once at most: one more than it keeps, while it saves."""
    arguments, state, limit = trainer.args, trainer.state, trainer.total_limit
    strategy = str(getattr(arguments.save_strategy, "value", arguments.save_strategy))
    left = max(0, state.max_steps - state.global_step)
    each = {"no": 0, "steps": state.save_steps, "epoch": math.ceil(state.max_steps / max(1, state.num_train_epochs))}
    every = each.get(strategy, left)
    saves = 0 if not every else max(1, left // every)
    return min(saves, limit + 1) if limit and limit > 0 else saves


def check_room(trainer: Any, needed: int) -> None:
    """Make sure that there is room for a checkpoint of so many bytes.

    Raises:
        DiskError: there is not.
    """
    folder = Path(trainer.args.output_dir)
    path = folder / f"checkpoint-{trainer.state.global_step}"
    if trainer.args.should_save and _free(folder) < needed:
        raise DiskError(
            f"{path} is not saved: it needs about {needed:,} bytes, and {_free(folder):,} are free there."
            f"{_kept(folder)} Make room there, or keep fewer by --save_total_limit; then the same command with "
            "--resume_from_checkpoint auto."
        )


def in_place(act: Callable[[], None], path: Path, needed: int, *, saves: bool) -> None:
    """Call `act` as `taken_whole` has it."""
    with taken_whole(path, needed, saves=saves):
        act()


@contextlib.contextmanager
def taken_whole(path: Path, needed: int, *, saves: bool) -> Iterator[None]:
    """Write a checkpoint inside; what a disk left of one that it did not take whole is removed.

    Args:
        path: of the checkpoint.
        needed: its size in bytes.
        saves: whether this process is one that removes it.

    Raises:
        DiskError: the disk took nothing more.
    """
    folder = path.parent
    try:
        with explained(lambda: folder, lambda: needed):
            yield
    except DiskError:
        if saves and not is_whole(path):
            with contextlib.suppress(OSError):  # a disk for reading only
                remove_checkpoint(path)
                write_record(folder, read_record(folder))
        raise
