"""Where a process stands among those of its run: what launchers leave in the environment, checked."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlm_lora.errors import ConfigError
from vlm_lora.launch.hostlists import expand_counts
from vlm_lora.launch.machines import LOOPBACK, either, first_host, kubeflow, number, sagemaker, shared_port

TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torch needs of every process of several."""

ONE_PROCESS = frozenset({"cache"})
"""Verbs that a launcher must not start."""
_READ_BY_ALL = "The processes of the run read what it keeps."


@dataclass(frozen=True, kw_only=True)
class _Spawner:
    """A program that starts processes and names their numbers in its own way."""

    source: str
    rank: str
    world_size: str
    local_rank: str
    local_world_size: str | None = None


# Open MPI's mpirun starts its helpers by srun, so that its processes have srun's variables too: it comes first.
SPAWNERS = (
    _Spawner(
        source="mpirun (Open MPI)",
        rank="OMPI_COMM_WORLD_RANK",
        world_size="OMPI_COMM_WORLD_SIZE",
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        local_world_size="OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    _Spawner(
        source="mpirun (MVAPICH)",
        rank="MV2_COMM_WORLD_RANK",
        world_size="MV2_COMM_WORLD_SIZE",
        local_rank="MV2_COMM_WORLD_LOCAL_RANK",
        local_world_size="MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    _Spawner(
        source="mpirun (MPICH, Intel MPI)",
        rank="PMI_RANK",
        world_size="PMI_SIZE",
        local_rank="MPI_LOCALRANKID",
        local_world_size="MPI_LOCALNRANKS",
    ),
    # SLURM_STEP_NUM_TASKS is set by srun only; SLURM_NTASKS by sbatch too, for a script that runs once.
    _Spawner(source="srun", rank="SLURM_PROCID", world_size="SLURM_STEP_NUM_TASKS", local_rank="SLURM_LOCALID"),
)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One process among those of a run."""

    source: str
    """Who started it: torchrun, accelerate launch, DeepSpeed's launcher, mpirun, srun, the environment, or you."""
    world_size: int = 1
    rank: int = 0
    local_rank: int = 0
    local_world_size: int | None = None
    """Processes on this machine; None where nothing says so."""
    nodes: int | None = None
    """Machines; None where nothing says so."""
    node_rank: int | None = None
    master_addr: str | None = None
    master_port: int | None = None

    @property
    def variables(self) -> dict[str, str]:
        """Return torch's variables; none for a process that is alone."""
        if self.master_addr is None:
            return {}
        named = {
            "RANK": self.rank,
            "WORLD_SIZE": self.world_size,
            "LOCAL_RANK": self.local_rank,
            "LOCAL_WORLD_SIZE": self.local_world_size,
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": self.master_port,
        }
        return {name: str(value) for name, value in named.items() if value is not None}

    def __str__(self) -> str:
        if self.master_addr is None:
            return f"Started by {self.source}: one process."
        where = ""
        if self.nodes is not None and self.local_world_size is not None:
            where = (
                f", process {self.local_rank} of {self.local_world_size} on machine {self.node_rank} of {self.nodes}"
            )
        meeting = f"meeting at {self.master_addr}:{self.master_port}"
        return f"Started by {self.source}: process {self.rank} of {self.world_size}{where}, {meeting}."


def refuse_several(verb: str, environ: Mapping[str, str]) -> None:
    """Stop a verb that is one process where it was started as one of several.

    Raises:
        ConfigError: it was, or as `found` says.
    """
    processes = found(environ).world_size
    if processes > 1:
        raise ConfigError(
            f"vlm-lora {verb} is one process, and was started as one of {processes}: type vlm-lora {verb} with the "
            f"same flags, without a launcher, once on each machine. {_READ_BY_ALL}"
        )


def refuse_launch(command: Sequence[str]) -> None:
    """Stop a launch of a verb that is one process, before anything is started.

    Args:
        command: the verb or script, with its flags.

    Raises:
        ConfigError: it is one; says what to type.
    """
    if command[0] in ONE_PROCESS:
        raise ConfigError(
            f"vlm-lora launch {command[0]}: {command[0]} is one process. Type, once on each machine: "
            f"{shlex.join(['vlm-lora', *command])}. {_READ_BY_ALL}"
        )


def found(environ: Mapping[str, str]) -> Placement:
    """Return what the environment says about this process.

    Raises:
        ConfigError: variables are half set or contradict each other, or a cluster started several copies that
            do not know of each other.
    """
    agent = _agent(environ)
    if agent is None:
        for spawner in SPAWNERS:
            if int(number(environ, spawner.world_size) or 1) > 1 and _belongs(environ, spawner):
                return _spawned(environ, spawner)
    source = agent or "the environment (torch's variables)"
    world_size, local_rank = number(environ, "WORLD_SIZE"), number(environ, "LOCAL_RANK")
    if local_rank is None and not number(environ, "RANK") and world_size in (None, 1):
        _refuse_copies(environ)
        return Placement(source="accelerate launch" if by_accelerate(environ) else "you")
    missing = [name for name in TORCH if not environ.get(name)]
    if missing:
        given = ", ".join(f"{name}={environ[name]}" for name in TORCH if environ.get(name))
        raise ConfigError(
            f"The environment says {given}, but lacks {' and '.join(missing)}. Start through a launcher "
            f"(vlm-lora launch ..., torchrun, accelerate launch), set all of {', '.join(TORCH)}, or unset them all for "
            "one process."
        )
    local_world_size = number(environ, "LOCAL_WORLD_SIZE") or number(environ, "LOCAL_SIZE")
    return _checked(
        environ,
        source=source,
        world_size=int(world_size or 0),
        rank=int(number(environ, "RANK") or 0),
        local_rank=int(local_rank or 0),
        local_world_size=local_world_size,
        nodes=number(environ, "GROUP_WORLD_SIZE") or number(environ, "CROSS_SIZE"),
        node_rank=either(number(environ, "GROUP_RANK"), number(environ, "CROSS_RANK")),
        master_addr=environ["MASTER_ADDR"],
        master_port=int(number(environ, "MASTER_PORT") or 0),
    )


def number_among_all(environ: Mapping[str, str]) -> int:
    """Return this process's number among those of its run, from the environment alone, without a check."""
    names = ("RANK", "OMPI_COMM_WORLD_RANK", "LOCAL_RANK")
    return int(next((environ[name] for name in names if name in environ), "0"))


def by_accelerate(environ: Mapping[str, str]) -> bool:
    """Say whether accelerate's launcher started this process."""
    return "ACCELERATE_MIXED_PRECISION" in environ


ENGINE_VARIABLES = {"deepspeed": "ACCELERATE_USE_DEEPSPEED", "fsdp": "ACCELERATE_USE_FSDP"}
"""What `accelerate launch` sets for an engine that its own flags or file name."""


def launcher_asks_for(engine: str, environ: Mapping[str, str]) -> bool:
    """Say whether `accelerate launch` was told to run this engine (`deepspeed` or `fsdp`)."""
    return environ.get(ENGINE_VARIABLES[engine], "").lower() in ("1", "true", "yes", "on")


def _agent(environ: Mapping[str, str]) -> str | None:
    """Name the launcher that set torch's variables itself."""
    if "TORCHELASTIC_RUN_ID" in environ:
        return "accelerate launch" if by_accelerate(environ) else "torchrun"
    return "DeepSpeed's launcher" if "CROSS_SIZE" in environ else None


def _belongs(environ: Mapping[str, str], spawner: _Spawner) -> bool:
    # srun --mpi=pmi2 sets the first two of MPICH's variables, and its own.
    return spawner.rank != "PMI_RANK" or spawner.local_rank in environ or "SLURM_STEP_NUM_TASKS" not in environ


def _spawned(environ: Mapping[str, str], spawner: _Spawner) -> Placement:
    """Return the placement of a process that has its spawner's numbers and perhaps some of torch's variables."""
    names = {"WORLD_SIZE": spawner.world_size, "RANK": spawner.rank, "LOCAL_RANK": spawner.local_rank}
    numbers: dict[str, int] = {}
    for name, theirs in names.items():
        value, torchs = number(environ, theirs), number(environ, name)
        if value is None:
            raise ConfigError(
                f"{spawner.source} started this process, but {theirs} is missing. Set {name} and {theirs}."
            )
        if torchs not in (None, value):
            raise ConfigError(f"{theirs}={value} and {name}={torchs} contradict each other. Unset {name}.")
        numbers[name] = value
    world_size, node_rank, nodes = numbers["WORLD_SIZE"], None, None
    if spawner.local_world_size is None:
        nodes, node_rank = number(environ, "SLURM_STEP_NUM_NODES"), number(environ, "SLURM_NODEID")
        counts = expand_counts(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
        local_world_size = counts[node_rank] if node_rank is not None and node_rank < len(counts) else None
    else:
        local_world_size = number(environ, spawner.local_world_size)
    first = environ.get("MASTER_ADDR") or first_host(environ)
    if first is None and local_world_size == world_size:
        first = LOOPBACK
    if first is None:
        raise ConfigError(
            f"{spawner.source} started {world_size} processes on several machines, but MASTER_ADDR is missing: "
            "set it to the name of rank 0's machine (mpirun -x MASTER_ADDR=NAME ...)."
        )
    return _checked(
        environ,
        source=spawner.source,
        world_size=world_size,
        rank=numbers["RANK"],
        local_rank=numbers["LOCAL_RANK"],
        local_world_size=local_world_size,
        nodes=nodes,
        node_rank=node_rank,
        master_addr=first,
        master_port=number(environ, "MASTER_PORT") or shared_port(environ),
    )


def _checked(
    environ: Mapping[str, str],
    *,
    source: str,
    world_size: int,
    rank: int,
    local_rank: int,
    local_world_size: int | None,
    nodes: int | None,
    node_rank: int | None,
    master_addr: str,
    master_port: int,
) -> Placement:
    if rank >= world_size:
        raise ConfigError(f"RANK={rank} and WORLD_SIZE={world_size}: ranks go from 0 to WORLD_SIZE - 1.")
    if local_rank > rank or (local_world_size is not None and local_rank >= local_world_size):
        raise ConfigError(
            f"LOCAL_RANK={local_rank} cannot be: RANK={rank}, LOCAL_WORLD_SIZE={local_world_size or 'not set'}."
        )
    if local_world_size and nodes is None:
        nodes, node_rank = -(-world_size // local_world_size), rank // local_world_size
    return Placement(
        source=source,
        world_size=world_size,
        rank=rank,
        local_rank=local_rank,
        local_world_size=local_world_size,
        nodes=nodes,
        node_rank=node_rank,
        master_addr=master_addr,
        master_port=master_port,
    )


def _refuse_copies(environ: Mapping[str, str]) -> None:
    """Refuse to run alone where a cluster started one such process on each of several machines."""
    for machines in (sagemaker(environ), kubeflow(environ)):
        if machines is not None and machines.count > 1:
            raise ConfigError(
                f"{machines.source} started this on {machines.count} machines, each of which would train alone. "
                "Put the launcher before the verb: vlm-lora launch train ..."
            )
