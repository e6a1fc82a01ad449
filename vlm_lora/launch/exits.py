"""How a process of ours exits."""

from __future__ import annotations

import atexit
import gc


def exit_without_collection() -> None:
    """Let this process exit without a last garbage collection.

    That one looks at every object there is: with torch's modules imported it takes more than a second, at the end of
    every command and of every launcher, and frees what the exit frees anyway.
    """
    atexit.unregister(gc.freeze)  # one call does
    atexit.register(gc.freeze)
