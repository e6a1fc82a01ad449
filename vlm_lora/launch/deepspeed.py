"""`python -m vlm_lora.launch.deepspeed`: DeepSpeed's launcher for one machine, which SIGUSR1 does not end."""

from __future__ import annotations

import runpy
import signal

from vlm_lora.launch.exits import exit_without_collection


def main() -> None:
    """Run `deepspeed.launcher.launch` with its own flags; it ends with the exit code of what failed first."""
    # The ranks are in its process group and get the signal themselves; a handler, unlike SIG_IGN, is not theirs too.
    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    exit_without_collection()
    runpy.run_module("deepspeed.launcher.launch", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
