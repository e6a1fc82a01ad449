"""The manifest of what a run saved: every rank puts its files on the disk and hashes them, then rank 0 seals the whole.

The ranks meet at the store that they know, so no device is asked, and a thread can do it while the training goes on.
A checkpoint counts from the moment on when its manifest is in place, whatever its folder is called and whatever else
lies in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from vlm_lora.config.repeated import FILE as RUN_FILE
from vlm_lora.launch.roll_call import within
from vlm_lora.model.hashing import put_on_disk
from vlm_lora.model.manifest import (
    MODEL_FILES,
    NAME,
    FileEntry,
    Manifest,
    begin,
    entries_of,
    files_of,
    manifest_name,
    write_manifest,
)
from vlm_lora.training.checkpoints.contents import step_of
from vlm_lora.training.checkpoints.run_record import files_named, read_record
from vlm_lora.training.meeting import Meeting

_MARKS = re.compile(r"(?:^rng_state_|(?:^|_)rank_?|^__)(\d+)(?=[_.])")
"""How transformers, DeepSpeed and FSDP write a rank's number into the names of the files that are its own."""


_MARGIN = 2.0
"""Seconds that the store has beyond the timeout: its own message is the better one."""


def machines_of(arguments: Any) -> bool:
    """Say whether each machine saves into a folder of its own."""
    return bool(arguments.save_on_each_node) and arguments.world_size > 1


def begin_checkpoint(folder: Path, arguments: Any) -> None:
    """Say in a new checkpoint's folder that it is unfinished; on each rank that saves."""
    begin(folder, _name(arguments, several=machines_of(arguments)))


def seal_checkpoint(folder: Path, arguments: Any) -> None:
    """Put a saved checkpoint's manifest in place; all ranks call it once they have written their files.

    Args:
        folder: of the checkpoint.
        arguments: the training arguments.

    Raises:
        OSError: a file cannot be read, or the disk does not take it.
    """
    prepare_seal(folder, arguments)()


def prepare_seal(folder: Path, arguments: Any, connection: Any = None) -> Callable[[], None]:
    """Return what does as `seal_checkpoint` says. All ranks prepare in the same order; when each calls it is its own.

    Args:
        folder: of the checkpoint.
        arguments: the training arguments.
        connection: as for `Meeting`.
    """
    rank, ranks, timeout = arguments.process_index, arguments.world_size, timedelta(seconds=arguments.ddp_timeout)
    if ranks == 1:
        return partial(_write, folder, {}, rank=0, machines=(0,))
    meetings = [Meeting(rank, ranks, timeout, connection) for _ in range(2 if machines_of(arguments) else 1)]
    return partial(_seal_together, folder, arguments, meetings)


def _seal_together(folder: Path, arguments: Any, meetings: Sequence[Meeting]) -> None:
    rank = arguments.process_index
    own = [path for path in files_of(folder) if owner_of(path) == rank]
    said = json.dumps(
        {
            "saves": bool(arguments.should_save),
            "files": {name: asdict(entry) for name, entry in entries_of(folder, own, rank=rank).items()},
        }
    )
    several = machines_of(arguments)

    def compose(texts: Sequence[str]) -> str:
        told = [json.loads(text) for text in texts]
        machines = [number for number, one in enumerate(told) if one["saves"]] if several else [0]
        files = {name: entry for one in told for name, entry in one["files"].items()}
        if not several:
            # Before the others hear of it: once they go on, the checkpoint is there.
            _write(folder, _entries(files), rank=0, machines=machines)
        return json.dumps({"machines": machines, "files": files if several else {}})

    # In a thread: the store waits for ever where the rank that keeps it is stopped.
    patience = arguments.ddp_timeout + _MARGIN
    heard = json.loads(within(patience, lambda: meetings[0].message(said, compose)))
    if not several:
        return
    if arguments.should_save:
        _write(folder, _entries(heard["files"]), rank=rank, machines=heard["machines"])
    within(patience, lambda: meetings[1].message("", lambda texts: ""))


def begin_final(folder: Path) -> None:
    """Say in an output folder that its weights are about to be written."""
    begin(folder)


def seal_final(folder: Path) -> None:
    """Put the manifest of an output folder's model in place: of what this folder's runs wrote, nothing else.

    Raises:
        OSError: a file cannot be read, or the disk does not take it.
    """
    written = files_named(folder, read_record(folder).files)
    covered = [
        path for path in written if path.is_file() and any(fnmatchcase(path.name, pattern) for pattern in MODEL_FILES)
    ]
    write_manifest(folder, Manifest(files=entries_of(folder, covered)))


def unseal_final(folder: Path) -> None:
    """Take an output folder's manifest away, before something writes weights there that is no end of a run."""
    (folder / NAME).unlink(missing_ok=True)


def owner_of(path: Path) -> int:
    """Return the rank that writes a checkpoint's file, by its name; what bears no number is of the rank that saves."""
    mark = _MARKS.search(path.name)
    return int(mark[1]) if mark else 0


def _name(arguments: Any, *, several: bool) -> str:
    return f"MANIFEST-{arguments.process_index}.json" if several else NAME


def _entries(files: Mapping[str, Mapping[str, Any]]) -> dict[str, FileEntry]:
    return {name: FileEntry(**entry) for name, entry in files.items()}


def _write(folder: Path, known: Mapping[str, FileEntry], *, rank: int, machines: Sequence[int]) -> None:
    """Write the manifest of all that is in a folder; what no rank has told of is looked at here."""
    paths = {path.relative_to(folder).as_posix(): path for path in files_of(folder)}
    entries = {name: entry for name, entry in known.items() if name in paths}
    entries |= entries_of(folder, [path for name, path in paths.items() if name not in entries], rank=rank)
    record = entries.get(RUN_FILE)
    put_on_disk(folder)
    manifest = Manifest(
        files=entries,
        machines=tuple(machines),
        step=step_of(folder),
        record=None if record is None else record.sha256,
    )
    write_manifest(folder, manifest, manifest_name(rank, machines))
    put_on_disk(folder.parent)
