"""`python -m vlm_lora_torch.accelerated`: accelerate's launcher, ending with the exit code of what failed first."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from vlm_lora.launch.group_signals import pass_signal_on
from vlm_lora.launch.launching import exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run `accelerate launch`; return 0 or the first failing process's exit code.

    Args:
        argv: accelerate's flags, `--`, and the command with its own.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    words = list(sys.argv[1:] if argv is None else argv)
    place = words.index("--")
    arguments = launch_command_parser().parse_args([*words[:place], words[place + 1]])
    arguments.training_script_args = words[place + 2 :]
    pass_signal_on()
    try:
        launch_command(arguments)
    except ChildFailedError as error:
        return exit_code(error.get_first_failure()[1].exitcode)
    except SignalException as error:
        return exit_code(-error.sigval)
    except subprocess.CalledProcessError as error:
        return exit_code(error.returncode)
    except (ValueError, ConnectionError, ImportError, AssertionError, OSError) as error:
        sys.stderr.write(f"error: accelerate launch: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # what torchrun sets where nobody did, without its warning
    sys.exit(main())
