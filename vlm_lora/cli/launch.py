"""`vlm-lora launch` and the launchers' scripts: start a verb or a script on several devices. Imports no torch."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vlm_lora.backend import installed, named, select
from vlm_lora.cli.setup import set_up_logging, wants_reasons
from vlm_lora.config.sources import parse
from vlm_lora.errors import ConfigError, nearest
from vlm_lora.launch.launching import LaunchRequest, bound, parse_launch, run_launch
from vlm_lora.launch.placement import refuse_launch

logger = logging.getLogger(__name__)

USAGE = """\
{program} [flags] SCRIPT [its flags]

  --backend NAME     auto, {backends}
  --world_size N     processes on this machine, one per device (where torch counts them, all; else 1)
  --nnodes N         machines; start this command on each (from Slurm, SageMaker or Kubeflow where they run it)
  --node_rank K      this machine's number, 0 to N-1 (from the same)
  --master_addr HOST machine 0 (from the same)
  --master_port N    port of the first process (a free one; on several machines 29500 or made from the Slurm job)
  --use_deepspeed    start by DeepSpeed's launcher (needed for --hostfile)
  --use_accelerate   start by accelerate's launcher, as accelerate_launch_args in the run's --config FILE do
  --config_file FILE accelerate's configuration file, such as launchers/accelerate/fsdp2.yaml
  --use_mpi          start by mpirun, where the backend does{mpi}
  --hostfile FILE    machines of a multi-node run, one `ADDRESS slots=N` a line; with --use_deepspeed
  --map_by UNIT      mpirun's mapping: socket, or slot on virtual machines (socket)
"""


def start(program: str, backend: str, words: Sequence[str], *, verbs: Sequence[str]) -> int:
    """Start a verb or a script on several devices, and return its exit code.

    Args:
        program: what was typed, for messages.
        backend: the backend's name where the command names none.
        words: flags, then the verb or script with its own.
        verbs: the verbs that there are.

    Raises:
        ConfigError: flags that contradict each other, or neither a verb nor a script.
    """
    request, command = parse_launch(program, words, backend=backend)
    refuse_launch(command)
    request = _with_accelerate(request, command)
    if command[0] in verbs:
        # The installed command is a Python script itself, which every launcher can start.
        command = [str(Path(sys.executable).with_name("vlm-lora")), *command]
    if not Path(command[0]).is_file():
        raise ConfigError(
            f"{program}: {command[0]} is no script here and no verb ({', '.join(verbs)}).{nearest(command[0], verbs)}"
        )
    set_up_logging("debug" if wants_reasons(command[1:]) else "info")
    # A named backend need not be usable here: a login node starts what runs on other machines.
    chosen = select(request.backend)[0] if request.backend == "auto" else named(request.backend)
    launch = chosen.launcher.launch(request, bound(command))
    if request.nnodes > 1:
        logger.info("Machine %d of %d, meeting at %s.", request.node_rank, request.nnodes, request.master_addr)
    logger.info("Starting on %s (%s).", chosen.name, chosen.probe().device or "none here")
    logger.debug("%s", shlex.join(launch.argv))
    return run_launch(launch)


def usage(program: str) -> str:
    """Return the help of what launches, by the program that was typed."""
    mpi = [name for name, backend in installed().items() if "use_mpi" in backend.declaration.launchers]
    return USAGE.format(
        program=program, backends=", ".join(sorted(installed())), mpi=f" ({', '.join(mpi)})" if mpi else ""
    )


def _with_accelerate(request: LaunchRequest, command: Sequence[str]) -> LaunchRequest:
    """Take `accelerate_launch_args` from the configuration of the run that is to be started."""
    if command[0] not in ("train", "eval") and Path(command[0]).name != "run_lora_vlm.py":
        return request
    given = parse(command[1:], environ=os.environ).accelerate_launch_args
    if not given:
        return request
    if request.use_mpi or request.use_deepspeed:
        raise ConfigError(
            "The configuration has accelerate_launch_args, which are for accelerate's launcher, and "
            f"--{'use_mpi' if request.use_mpi else 'use_deepspeed'} is another. Leave one of them out."
        )
    return replace(request, use_accelerate=True, accelerate_launch_args=given)
