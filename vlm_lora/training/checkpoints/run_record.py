"""What runs of this program wrote into an output folder, by name: nothing else there is counted or removed.

`run_files.json` in that folder keeps two lists. A checkpoint's name is on it before its folder is first written, so
that a run that was killed while it saved is known to have been there; a name whose folder is gone counts no more.
The names of files are those that a run may write, until its end leaves those that it did write.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from vlm_lora.config.declaration import declarations
from vlm_lora.config.whole_files import read_json, write_json
from vlm_lora.model.manifest import NAME, Manifest, manifests_in, write_manifest
from vlm_lora.training.checkpoints.contents import STATE_FILE

logger = logging.getLogger(__name__)

RECORD = "run_files.json"

EVALUATION_FILES = (
    "all_results.json",
    "eval_results.json",
    "predictions.jsonl",
    "report.html",
    "eval_config.yaml",
    "eval_run.json",
    "data_report.json",
    "quarantine.jsonl",
    "overlong_rows.json",
    "shape_plan.json",
    "pack_lengths.json",
    "vision_features.json",
)
"""What a run that measures alone writes."""

WEIGHT_FILES = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "config.json",
)
"""Weights, and what makes weights of them. `*` stands for a shard's number."""

TRAINING_FILES = (
    *EVALUATION_FILES,
    *WEIGHT_FILES,
    NAME,
    STATE_FILE,
    "train_results.json",
    "run.json",
    "RUN_STATE.json",
    "run_config.yaml",
    "row_lengths.npz",
    "README.md",
    "training_args.bin",
    "generation_config.json",
    # What the processors of all families save, with transformers 4.55 or 5.x.
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
    "vocab.txt",
)
"""What a run that trains may write next to its checkpoints; TensorBoard's `runs` and a model's own code never go."""


@cache
def training_files() -> tuple[str, ...]:
    """Return these, and what the trainers of the installed adapters write."""
    return (*TRAINING_FILES, *(name for declared in declarations().values() for name in declared.files))


_CHECKPOINT = re.compile(r"checkpoint-(0|[1-9]\d*)")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The names on record, all directly in the output folder."""

    checkpoints: tuple[str, ...] | None = None
    """Oldest first, by when they were last saved; None where no training run has kept a list."""
    files: tuple[str, ...] = ()
    """Names, and patterns of shards' names while a run is under way."""
    sealed: tuple[str, ...] = ()
    """The checkpoints that were saved with a manifest: one that has none is not whole."""

    def lists(self, name: str) -> bool:
        """Say whether a checkpoint is on the list."""
        return name in (self.checkpoints or ())


def read_record(folder: Path) -> RunRecord:
    """Return a folder's record, without the checkpoints that are gone; an empty one where there is none."""
    content = read_json(folder / RECORD)
    listed, files, sealed = content.get("checkpoints"), content.get("files"), content.get("sealed")
    return RunRecord(
        checkpoints=tuple(
            name
            for name in listed
            if isinstance(name, str) and _CHECKPOINT.fullmatch(name) and _is_there(folder / name)
        )
        if isinstance(listed, list)
        else None,
        # Whoever edits the file: nothing but what a run can write is ever meant.
        files=tuple(
            name
            for name in files
            if isinstance(name, str) and any(fnmatchcase(name, pattern) for pattern in training_files())
        )
        if isinstance(files, list)
        else (),
        sealed=tuple(name for name in sealed if isinstance(name, str)) if isinstance(sealed, list) else (),
    )


def write_record(folder: Path, record: RunRecord) -> None:
    """Write a folder's record, whole or not at all."""
    lists: dict[str, list[str]] = {} if record.checkpoints is None else {"checkpoints": list(record.checkpoints)}
    sealed = [name for name in record.checkpoints or () if name in record.sealed]
    lists |= {"sealed": sealed} if sealed else {}
    write_json(folder / RECORD, {**lists, "files": sorted(set(record.files))})


def numbered_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return whatever is called `checkpoint-N` in a folder, by number; on record or not."""
    found = [(match, path) for path in folder.glob("checkpoint-*") if (match := _CHECKPOINT.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in found)


def files_named(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """Return what is there under these names, links without a target included."""
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    found |= {folder / name for name in patterns if (folder / name).is_symlink()}
    return sorted(found)


def note_start(folder: Path, names: Iterable[str], *, trains: bool, resumed: str | None) -> None:
    """Put on record what a run is about to write, before it does.

    A file that is there already and on no record stays off it: it is somebody else's until the run writes over it.

    Args:
        folder: the output folder.
        names: the files, with patterns of shards.
        trains: whether checkpoints will be saved.
        resumed: the checkpoint in this folder that the run goes on from, which is its own from now on.
    """
    record = read_record(folder)
    checkpoints = record.checkpoints
    adopts = resumed is not None and checkpoints is None
    if trains and checkpoints is None:
        checkpoints = ()
    if resumed is not None and not record.lists(resumed):
        checkpoints = (*(checkpoints or ()), resumed)
        logger.warning(
            "%s was on no list of this folder's runs (%s); it is from now on, because this run goes on from it. Other "
            "checkpoints that are on no list are neither counted nor removed.",
            folder / resumed,
            RECORD,
        )
    # The run that is gone on from wrote what is there, also where that version kept no record.
    theirs = [] if adopts else [path.name for path in files_named(folder, names) if path.name not in record.files]
    files = {*record.files, *(name for name in names if name not in theirs)}
    noted = replace(record, checkpoints=checkpoints, files=tuple(sorted(files)))
    if noted != record:
        write_record(folder, noted)


def note_end(folder: Path) -> None:
    """Leave on record what was written, and remove what killed runs left of files that were to be written whole."""
    record = read_record(folder)
    for name in (*record.files, RECORD):
        for part in folder.glob(f".{name}.*.partial"):
            part.unlink(missing_ok=True)
    written = [path.name for path in files_named(folder, record.files)]
    write_record(folder, replace(record, files=tuple(written)))


def note_file(folder: Path, name: str) -> None:
    """Put on record a file that was written after the run's end; in a folder without a record nothing is noted."""
    record = read_record(folder)
    if (folder / RECORD).is_file() and name not in record.files:
        write_record(folder, RunRecord(checkpoints=record.checkpoints, files=(*record.files, name)))


def note_checkpoint(folder: Path, name: str) -> None:
    """Put a checkpoint at the end of the list, as the newest, before its folder is written."""
    record = read_record(folder)
    others = tuple(other for other in record.checkpoints or () if other != name)
    write_record(folder, replace(record, checkpoints=(*others, name), sealed=(*record.sealed, name)))


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint; of a link to one the link alone. Other machines may be removing it, too.

    Raises:
        OSError: it cannot be removed.
    """
    if path.is_symlink():
        path.unlink(missing_ok=True)
        return
    # First what makes it count as whole: one that is half removed must not be gone on from, nor taken for damaged.
    for file in manifests_in(path):
        with contextlib.suppress(OSError):  # a full disk, or another machine was faster
            write_manifest(path, Manifest(complete=False), file.name)
    (path / STATE_FILE).unlink(missing_ok=True)
    while path.is_dir():
        try:
            shutil.rmtree(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise


def remove_recorded(folder: Path, record: RunRecord) -> None:
    """Remove the checkpoints and files on record, which another machine may be doing in the same folder.

    Raises:
        OSError: one cannot be removed.
    """
    for name in record.checkpoints or ():
        remove_checkpoint(folder / name)
    for file in files_named(folder, record.files):
        file.unlink(missing_ok=True)


def _is_there(path: Path) -> bool:
    return path.is_dir() or path.is_symlink()
