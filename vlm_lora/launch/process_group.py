"""The processes of one run among themselves: how one notices that another has gone, and how they part."""

from __future__ import annotations

import atexit
import os
import re
import sys

LOST = "Another process of this run has ended"
"""How the message of a process begins that only noticed another's end."""

_SIGNS = re.compile("closed by peer|reset by peer|Broken pipe|remote process exit|NCCL communicator was aborted")
"""What gloo, torch's store and NCCL say where the other side is gone."""

_leaving: list[bool] = []


def lost_partner(error: BaseException) -> str | None:
    """Return a message if `error` is a collective that lost its partner, else None."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not isinstance(error, (RuntimeError, ConnectionError)):
        return None
    if not _SIGNS.search(str(error)):
        return None
    return f"{LOST}; rank {os.environ.get('RANK', '0')} waited for it in vain. What that one said tells why."


def port_taken(error: BaseException) -> str | None:
    """Return a message if `error` says that the port to meet at is in use, else None."""
    if not isinstance(error, RuntimeError) or "EADDRINUSE" not in str(error):
        return None
    port = os.environ.get("MASTER_PORT", "?")
    return (
        f"The port {port}, on which the processes of this run meet, is in use, perhaps by another run. Give the "
        "launcher another one, for example --master_port 29501 (accelerate: --main_process_port)."
    )


def part_at_exit() -> None:
    """Let go of the other processes before the interpreter is torn down.

    gloo's threads would still run by then, and a process whose partner has gone would abort at its very end:
    a run that succeeded would count as failed.
    """
    atexit.unregister(_part)
    atexit.register(_part)


def leave_at_once() -> None:
    """Let `part_at_exit` end this process with exit code 1 and wait for nothing: a rank that does not answer.

    What gloo has begun with it would each be waited for as long as the first.
    """
    _leaving.append(True)


def _part() -> None:
    if _leaving:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    # After a failure NCCL would wait for collectives that the others never join; only gloo's end is at once.
    if distributed.get_backend() == "gloo":
        distributed.destroy_process_group()
