"""What every process of a machine sees, such as a full disk, said by one of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from vlm_lora.launch.machines import number


def says_first(mark: Path, environ: Mapping[str, str]) -> bool:
    """Return whether this process is to say it: of a machine's first rank the first, loader workers among them.

    Args:
        mark: a file that the first one leaves; the same for all copies of what they see it with.
        environ: names the rank.
    """
    if number(environ, "LOCAL_RANK"):
        return False
    try:
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    except FileExistsError:
        return False
    except OSError:  # no mark can be left either: better said twice than not at all
        return True
    return True
