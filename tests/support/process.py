"""What the command line sets for its process, put back: here many commands share one."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = ("vlm_lora", "vlm_lora_cuda", "vlm_lora_habana")


@contextmanager
def as_it_was() -> Iterator[None]:
    """Put logging and the environment back at the end; for each test, and for fixtures that live longer than one."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
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
