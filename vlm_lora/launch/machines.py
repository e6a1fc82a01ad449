"""Which machines take part in a run, and which of them this is: from flags, Slurm, SageMaker or Kubeflow."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from vlm_lora.errors import ConfigError
from vlm_lora.launch.hostlists import expand_hosts

LOOPBACK = "127.0.0.1"
PORT = 29500
"""torch's own default."""


@dataclass(frozen=True, kw_only=True)
class Machines:
    """The machines of a run, and which of them this is."""

    source: str = "this machine"
    count: int = 1
    rank: int = 0
    master_addr: str = LOOPBACK
    master_port: int | None = None
    processes: int | None = None
    """Processes that the cluster wants on each machine."""


def machines(
    environ: Mapping[str, str],
    *,
    count: int | None = None,
    rank: int | None = None,
    master_addr: str | None = None,
) -> Machines:
    """Return the machines that were set, and what was not set from the cluster's variables.

    Raises:
        ConfigError: something is missing or wrong, or this is not the place to start processes from.
    """
    if count is None and rank is not None:
        raise ConfigError(f"--node_rank {rank}: how many machines are there? Type --nnodes N too.")
    if count is not None and count < 1:
        raise ConfigError(f"--nnodes {count}: must be 1 or more.")
    if count == 1:
        return Machines(master_addr=master_addr or LOOPBACK)
    seen = _slurm(environ, count) or sagemaker(environ) or kubeflow(environ) or Machines()
    if count is None:
        return replace(seen, master_addr=master_addr or seen.master_addr)
    if seen.count == count:
        rank, master_addr = either(rank, seen.rank), master_addr or seen.master_addr
    master_addr = master_addr or environ.get("MASTER_ADDR")
    for flag, value, what in (
        ("--node_rank", rank, f"this machine's number, 0 to {count - 1}"),
        ("--master_addr", master_addr, "the name or address of machine 0"),
    ):
        if value is None:
            raise ConfigError(f"--nnodes {count}: {flag} is missing ({what}), and no cluster's variables say it.")
    if rank is None or master_addr is None or not 0 <= rank < count:
        raise ConfigError(f"--node_rank {rank} --nnodes {count}: machines are numbered 0 to {count - 1}.")
    return Machines(
        source="flags",
        count=count,
        rank=rank,
        master_addr=master_addr,
        master_port=number(environ, "MASTER_PORT") or shared_port(environ),
        processes=seen.processes,
    )


def shared_port(environ: Mapping[str, str]) -> int:
    """Return a port that all processes of a job agree on without talking, and most other jobs do not use."""
    key = environ.get("SLURM_JOB_ID") or environ.get("PMIX_NAMESPACE")
    return 20_000 + zlib.crc32(key.encode()) % 10_000 if key else PORT


def _slurm(environ: Mapping[str, str], count: int | None) -> Machines | None:
    nodes = number(environ, "SLURM_STEP_NUM_NODES")
    if nodes is None:
        allocated = number(environ, "SLURM_JOB_NUM_NODES") or 1
        if allocated > 1 and count is None:
            raise ConfigError(
                f"This Slurm job has {allocated} machines, and this command runs on the first only. Start one launcher "
                "on each: srun --ntasks-per-node=1 vlm-lora launch ...; or type --nnodes 1 for this machine alone."
            )
        return None
    tasks, node_rank, first = (
        number(environ, "SLURM_STEP_NUM_TASKS") or nodes,
        number(environ, "SLURM_NODEID"),
        first_host(environ),
    )
    if tasks > nodes:
        raise ConfigError(
            f"srun started {tasks} launchers on {nodes} machines. Start one on each (srun --ntasks-per-node=1 vlm-lora "
            "launch ...), or let srun start every process (srun --ntasks-per-node=8 vlm-lora train ...)."
        )
    if nodes == 1:
        return None
    if node_rank is None or first is None:
        raise ConfigError("srun started this, but SLURM_NODEID or SLURM_STEP_NODELIST is missing.")
    port = number(environ, "MASTER_PORT") or shared_port(environ)
    return Machines(
        source="Slurm", count=nodes, rank=node_rank, master_addr=environ.get("MASTER_ADDR") or first, master_port=port
    )


def sagemaker(environ: Mapping[str, str]) -> Machines | None:
    """Return SageMaker's machines; None elsewhere.

    The toolkit in Amazon's containers sets the variables, `launchers/sagemaker/entry.py` does in others.
    """
    try:
        resources = json.loads(environ.get("SM_RESOURCE_CONFIG") or "{}")
        hosts = json.loads(environ.get("SM_HOSTS") or "null") or resources.get("hosts")
    except (json.JSONDecodeError, AttributeError) as error:
        raise ConfigError(f"SM_HOSTS or SM_RESOURCE_CONFIG is not the JSON that SageMaker writes: {error}.") from error
    if not hosts:
        return None
    # algo-2 before algo-10, and the same order everywhere.
    hosts = sorted(hosts, key=lambda host: (len(host), host))
    current = environ.get("SM_CURRENT_HOST") or resources.get("current_host")
    if current not in hosts:
        raise ConfigError(f"SM_CURRENT_HOST={current} is not among SM_HOSTS={', '.join(hosts)}.")
    return Machines(
        source="SageMaker",
        count=len(hosts),
        rank=hosts.index(current),
        master_addr=hosts[0] if len(hosts) > 1 else LOOPBACK,
        master_port=(number(environ, "MASTER_PORT") or PORT) if len(hosts) > 1 else None,
        processes=number(environ, "SM_NUM_GPUS") or None,
    )


def kubeflow(environ: Mapping[str, str]) -> Machines | None:
    """Return the machines that Kubeflow's operators name in torchrun's variables; None where there are none."""
    count = environ.get("PET_NNODES", "")
    if not count.isdigit() or int(count) == 1:
        return None
    rank, first = number(environ, "PET_NODE_RANK"), environ.get("PET_MASTER_ADDR")
    if rank is None or not first:
        raise ConfigError(f"PET_NNODES={count}, but PET_NODE_RANK or PET_MASTER_ADDR is missing.")
    processes = environ.get("PET_NPROC_PER_NODE", "")
    return Machines(
        source="Kubeflow",
        count=int(count),
        rank=rank,
        master_addr=first,
        master_port=number(environ, "PET_MASTER_PORT") or PORT,
        processes=int(processes) if processes.isdigit() else None,
    )


def first_host(environ: Mapping[str, str]) -> str | None:
    """Return the first machine of this Slurm step or job."""
    text = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    return expand_hosts(text)[0] if text else None


def either(first: int | None, second: int | None) -> int | None:
    """Return the first that is there; 0 counts."""
    return second if first is None else first


def number(environ: Mapping[str, str], name: str) -> int | None:
    """Return a variable as a number, None where it is not set or empty."""
    text = environ.get(name, "")
    if not text:
        return None
    if not text.isdigit():
        raise ConfigError(f"{name}={text}: must be a whole number, 0 or more.")
    return int(text)
