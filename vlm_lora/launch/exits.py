"""How a process of ours exits."""

from __future__ import annotations

import atexit
import gc
import signal


def exit_without_collection() -> None:
    """Let this process exit without a last garbage collection.

    That one looks at every object there is: with torch's modules imported it takes more than a second, at the end of
    every command and of every launcher, and frees what the exit frees anyway.
    """
    atexit.unregister(gc.freeze)  # one call does
    atexit.register(gc.freeze)


def exit_undisturbed() -> None:
    """Let SIGUSR1 change nothing once this process, which has done what it was to do, exits.

    Launchers hand it to all processes of a run, some of which may have ended: by its default it would kill one that is
    still exiting, and a run that is done would end as one that was not. SIGTERM and Ctrl-C end an exit that hangs.
    """
    atexit.unregister(_ignore)
    atexit.register(_ignore)  # last of all, so that it is called first


def _ignore() -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
