"""`python -m vlm_lora.launch.elastic`: torch's launcher, ending with the exit code of the process that failed first."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from vlm_lora.launch.exits import exit_without_collection
from vlm_lora.launch.group_signals import pass_signal_on
from vlm_lora.launch.launching import exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run `torch.distributed.run` with its own flags; return 0 or the first failing process's exit code.

    Args:
        argv: torchrun's flags, `--`, and the command with its own, which torchrun would otherwise take for
            its own where they begin alike (`--n`).
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    words = list(sys.argv[1:] if argv is None else argv)
    place = words.index("--")
    arguments = parse_args([*words[:place], words[place + 1]])
    arguments.training_script_args = words[place + 2 :]
    if arguments.nproc_per_node != "1":
        # What torch's launcher sets where nobody did, without its warning.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    pass_signal_on()
    exit_without_collection()
    try:
        run(arguments)
    except ChildFailedError as error:
        return exit_code(error.get_first_failure()[1].exitcode)
    except SignalException as error:
        return exit_code(-error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main())
