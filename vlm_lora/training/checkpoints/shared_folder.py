"""Whether the machines of a run have one output folder or one each, found out before anything is trained.

In folders of their own, which `--save_on_each_node` is for, each keeps its part of a checkpoint. Without it nobody
would have a whole one; and in one folder it would let all machines write the same files at once.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from vlm_lora.errors import ConfigError
from vlm_lora.training.meeting import Meeting


def check_machines(folder: Path, arguments: Any) -> None:
    """Make sure that several machines have the folder that their setting says; all ranks call it once it is there.

    Args:
        folder: the output folder.
        arguments: the training arguments.

    Raises:
        ConfigError: the machines have folders of their own without `--save_on_each_node`, or one folder with it.
    """
    rank, ranks = arguments.process_index, arguments.world_size
    strategy = str(getattr(arguments.save_strategy, "value", arguments.save_strategy))
    if ranks == 1 or strategy == "no":
        return
    timeout = timedelta(seconds=arguments.ddp_timeout)
    mark = _mark(folder) if rank == 0 else None
    try:
        first = arguments.local_process_index == 0
        own = json.dumps([first, None if mark is None else mark.name])
        heard = json.loads(Meeting(rank, ranks, timeout).message(own, _machines))
        machines, name = heard
        if len(machines) == 1:
            return
        seen = "" if not first else "yes" if (folder / name).exists() else "no"
        seen_by = json.loads(Meeting(rank, ranks, timeout).message(seen, lambda texts: json.dumps(list(texts))))
    finally:
        if mark is not None:
            mark.unlink(missing_ok=True)
    others = [number for number in machines if number != 0]
    if arguments.save_on_each_node:
        _refuse_one_folder(folder, [number for number in others if seen_by[number] == "yes"])
    else:
        _refuse_several(folder, [number for number in others if seen_by[number] == "no"])


def _mark(folder: Path) -> Path:
    """Put a file of a new name into a folder, which no machine can have seen before."""
    descriptor, name = tempfile.mkstemp(prefix=".one-folder-", dir=folder)
    os.close(descriptor)
    return Path(name)


def _machines(texts: Sequence[str]) -> str:
    """Return the ranks that are the first of their machines, and the name that rank 0 told."""
    told = [json.loads(text) for text in texts]
    return json.dumps([[number for number, (first, _) in enumerate(told) if first], told[0][1]])


def _refuse_several(folder: Path, ranks: Sequence[int]) -> None:
    if ranks:
        raise ConfigError(
            f"--output_dir {folder} of rank 0 is not there on the machine of rank {', '.join(map(str, ranks))}: each "
            "machine has a folder of its own, and none would hold a whole checkpoint. Name a folder that all machines "
            "share; or type --save_on_each_node true, and each keeps its part, or --save_strategy no."
        )


def _refuse_one_folder(folder: Path, ranks: Sequence[int]) -> None:
    if ranks:
        raise ConfigError(
            f"--save_on_each_node true: --output_dir {folder} is one folder for the machines of ranks "
            f"{', '.join(map(str, [0, *ranks]))}, which would write the same files at once. Leave the flag out, or "
            "name a folder of each machine's own."
        )
