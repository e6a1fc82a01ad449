"""Processes of tests: what the command line sets for its own, put back, and which one is a run's rank."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOGGERS = ("vlm_lora", "vlm_lora_torch", "vlm_lora_cuda", "vlm_lora_habana", "transformers")
"""Whose levels `--log_level` sets: ours as the command line starts, transformers' where its Trainer is built."""


@contextmanager
def as_it_was() -> Iterator[None]:
    """Put logging and the environment back at the end; for each test, and for fixtures that live longer than one."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    levels["transformers"] = levels["transformers"] or logging.WARNING  # its own, once something imports it
    handlers, environment = list(logging.root.handlers), dict(os.environ)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        logging.root.handlers[:] = handlers
        # pytest itself keeps the name of the running test there.
        for name in set(os.environ) - set(environment) - {"PYTEST_CURRENT_TEST"}:
            del os.environ[name]
        os.environ.update(environment)


def find_rank(rank: int, output: Path) -> int:
    """Return the process that is this rank of the run that writes there."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if f"LOCAL_RANK={rank}".encode() in variables and str(output).encode() in words:
            return int(folder.name)
    raise AssertionError(f"rank {rank} does not run")
