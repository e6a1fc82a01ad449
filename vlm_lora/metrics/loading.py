"""`evaluate` modules by path, without a network and without a folder that processes share.

`evaluate` copies a module's script, by its hash, into a cache below the home folder and locks it there. A home folder
may be read-only, or on a network file system where locks hang. So each process has a folder of its own for it, which
goes with the process. `evaluate` is told one process and to keep everything in memory: ranks gather answers themselves,
and rank 0 computes.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from vlm_lora.metrics.table import METRICS

_PACKAGE = "evaluate_modules"
"""What `evaluate` calls the package that it puts scripts into."""


@cache
def load_metric(name: str) -> Any:
    """Return the module of one of our own metrics, once for each process."""
    return load_module(METRICS[name].path)


def load_module(path: Path) -> Any:
    """Return the `evaluate` module whose script lies at a path.

    Raises:
        Exception: whatever the script raises.
    """
    import evaluate

    folder = _own_folder()
    with _scripts_copied_to(folder):
        return evaluate.load(
            str(path), num_process=1, keep_in_memory=True, cache_dir=str(folder / "data"), download_mode=None
        )


@cache
def _own_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="vlm-lora-metrics-"))
    atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child ends before its parent is done with the folder
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _scripts_copied_to(folder: Path) -> Iterator[None]:
    """Let `evaluate` copy scripts below a folder; where it has loaded some of elsewhere already, go on there.

    It is one package to Python, which is looked for where it was found first.
    """
    import evaluate.config

    package = sys.modules.get(_PACKAGE)
    found = [Path(place).parent for place in getattr(package, "__path__", ())]
    before = evaluate.config.HF_MODULES_CACHE
    evaluate.config.HF_MODULES_CACHE = str(found[0] if found else folder)
    try:
        yield
    finally:
        evaluate.config.HF_MODULES_CACHE = before
