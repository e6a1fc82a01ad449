"""Run by launchers as `python rank.py SCRIPT ...`: becomes `python SCRIPT ...`, which ends with its launcher.

So every script is bound, whatever it is and whoever starts it (torch's launcher, DeepSpeed's, accelerate's, mpirun).
"""

from __future__ import annotations

import os
import sys

from vlm_lora.launch.binding import LAUNCHER, bind_rank


def main() -> None:
    """Bind this process and become the script, with the interpreter's own flags."""
    bind_rank(os.environ)
    # What a script starts of itself is its own affair.
    os.environ.pop(LAUNCHER, None)
    place = len(sys.orig_argv) - len(sys.argv)
    os.execv(sys.executable, [*sys.orig_argv[:place], *sys.orig_argv[place + 1 :]])


if __name__ == "__main__":
    main()
