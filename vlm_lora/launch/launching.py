"""Start a command on several devices: what was asked for, and one way to run what a backend makes of it."""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_lora.errors import ConfigError, nearest
from vlm_lora.launch.binding import LAUNCHER, RANK_ENTRY, child_of_this_process
from vlm_lora.launch.child_stderr import Relay
from vlm_lora.launch.group_signals import GRACE, PASSED_ON, PassingOn, end_group
from vlm_lora.launch.machines import LOOPBACK, PORT, Machines, machines

ENTRY = "-m", "vlm_lora.launch.elastic"
"""`torchrun`, which passes on the exit code of the process that failed first and prints no traceback of its own."""

KILLED = (128 + signal.SIGKILL, 256 - signal.SIGKILL)
"""Exit codes for a killed process: a shell's, and that of DeepSpeed's launcher."""

SHARING = ("TORCHELASTIC_RUN_ID", "CROSS_SIZE")
"""Variables of launchers that bind their processes to no cores: torch's and accelerate's, and DeepSpeed's."""


@dataclass(frozen=True, kw_only=True)
class LaunchRequest:
    """How many processes, and by which launcher."""

    backend: str = "auto"
    """auto, or the name of an installed backend."""
    world_size: int | None = None
    """Processes on this machine; None is what the backend finds right. With a hostfile its slots count instead."""
    use_mpi: bool = False
    """Start by mpirun."""
    use_deepspeed: bool = False
    """Start by DeepSpeed's launcher."""
    use_accelerate: bool = False
    """Start by accelerate's launcher."""
    config_file: Path | None = None
    """accelerate's configuration file."""
    accelerate_launch_args: Mapping[str, Any] = field(default_factory=dict)
    """Flags of accelerate's launcher, from the run's own configuration file."""
    hostfile: Path | None = None
    """Machines of a multi-node run, one `ADDRESS slots=N` a line; needs DeepSpeed's launcher."""
    nnodes: int = 1
    """Machines, where this command is started on each of them."""
    node_rank: int = 0
    """This machine's number."""
    master_addr: str = LOOPBACK
    """Name or address of machine 0."""
    master_port: int | None = None
    """Port of the first process; a free one when not given and there is one machine."""
    map_by: str = "socket"
    """mpirun's mapping unit: socket, or slot on virtual machines."""

    def __post_init__(self) -> None:
        if self.world_size is not None and self.world_size < 1:
            raise ConfigError(f"--world_size {self.world_size}: must be 1 or more.")
        launchers = [flag for flag in ("use_mpi", "use_deepspeed", "use_accelerate") if getattr(self, flag)]
        if len(launchers) > 1:
            raise ConfigError(f"{' and '.join(f'--{name}' for name in launchers)} are two launchers: choose one.")
        if self.config_file is not None and not self.use_accelerate:
            raise ConfigError("--config_file is accelerate's: add --use_accelerate. The run's own is --config FILE.")
        if self.hostfile is not None and not self.use_deepspeed:
            raise ConfigError(
                "--hostfile is for DeepSpeed's launcher, which logs in to the machines: add --use_deepspeed. To start "
                "each machine's processes there yourself: --nnodes N --node_rank K --master_addr FIRST."
            )
        if self.nnodes > 1 and (self.hostfile is not None or self.use_mpi):
            raise ConfigError(
                f"--nnodes {self.nnodes} starts this machine's processes only; "
                f"{'a hostfile' if self.hostfile else 'mpirun'} starts those of all machines. Leave one of them out."
            )
        if self.map_by not in ("socket", "slot", "core", "numa"):
            raise ConfigError(f"--map_by {self.map_by}: allowed are socket, slot, core, numa.")

    @property
    def several_machines(self) -> bool:
        """Say whether other machines take part."""
        return self.nnodes > 1 or self.hostfile is not None


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A command line that starts all processes."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables to add."""


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """A hostfile's content."""

    slots: Mapping[str, int]

    @property
    def first(self) -> str:
        """The machine that the others connect to."""
        return next(iter(self.slots))

    @classmethod
    def read(cls, path: Path) -> Hosts:
        """Read a hostfile.

        Raises:
            ConfigError: it is not there, a line is not `ADDRESS slots=N`, or a machine is there twice.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ConfigError(f"--hostfile {path}: cannot be read ({error.strerror}).") from error
        slots: dict[str, int] = {}
        for number, line in enumerate(lines, start=1):
            text = line.split("#")[0].split()
            if not text:
                continue
            if len(text) != 2 or not text[1].startswith("slots=") or not text[1][6:].isdigit() or text[1] == "slots=0":
                raise ConfigError(
                    f"--hostfile {path} line {number}: {line.strip()!r} is not `ADDRESS slots=N`, such as "
                    "`10.10.0.1 slots=8`."
                )
            if text[0] in slots:
                raise ConfigError(f"--hostfile {path} line {number}: {text[0]} is there twice.")
            slots[text[0]] = int(text[1][6:])
        if not slots:
            raise ConfigError(f"--hostfile {path}: names no machine; a line is `ADDRESS slots=N`.")
        return cls(slots=slots)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        wrong = message.rpartition(": ")[2]
        raise ConfigError(
            f"{self.prog}: {message}.{nearest(wrong, self.flags)} The launcher's flags stand before the script's name."
        )

    @property
    def flags(self) -> list[str]:
        """The flags under the name that is documented."""
        return [action.option_strings[0] for action in self._actions if action.option_strings]


def _parser(program: str, backend: str) -> _Parser:
    parser = _Parser(prog=program, allow_abbrev=False, add_help=False)
    parser.add_argument("--backend", default=backend)
    parser.add_argument("--world_size", "--world-size", "--nproc_per_node", "--nproc-per-node", type=int)
    parser.add_argument("--num_processes", "--num-processes", type=int)  # accelerate's: of all machines
    parser.add_argument("--use_mpi", "--use-mpi", action="store_true")
    parser.add_argument("--use_deepspeed", "--use-deepspeed", action="store_true")
    parser.add_argument("--use_accelerate", "--use-accelerate", action="store_true")
    parser.add_argument("--config_file", "--config-file", type=Path)
    parser.add_argument("--hostfile", type=Path)
    # As torchrun and as accelerate call them.
    parser.add_argument("--nnodes", "--num_machines", "--num-machines", "--num_nodes", "--num-nodes", type=int)
    parser.add_argument("--node_rank", "--node-rank", "--machine_rank", "--machine-rank", type=int)
    parser.add_argument("--master_addr", "--master-addr", "--main_process_ip", "--main-process-ip")
    parser.add_argument("--master_port", "--master-port", "--main_process_port", "--main-process-port", type=int)
    parser.add_argument("--map_by", "--map-by", default="socket")
    parser.add_argument("--use_env", "--use-env", action="store_true")  # torch's launcher does nothing else any more
    parser.add_argument("command", nargs=argparse.REMAINDER)
    return parser


def parse_launch(
    program: str, words: Sequence[str], *, backend: str, environ: Mapping[str, str] = os.environ
) -> tuple[LaunchRequest, list[str]]:
    """Split a launcher's words into its own flags and the command that follows them, spaces and all.

    What was not set about machines comes from the cluster's variables.

    Raises:
        ConfigError: an unknown or wrong flag, no command, or machines that do not add up.
    """
    parser = _parser(program, backend)
    own = parser.parse_args(list(words))
    command = own.command[1:] if own.command[:1] == ["--"] else own.command
    if command and command[0].startswith("-"):
        raise ConfigError(f"{program}: {command[0]} is not a flag of the launcher.{nearest(command[0], parser.flags)}")
    if not command:
        raise ConfigError(
            f"{program}: what should be started? For example: {program} --world_size 8 run_lora_vlm.py ..."
        )
    typed = {"count": own.nnodes, "rank": own.node_rank, "master_addr": own.master_addr}
    # A hostfile and mpirun name or know the machines themselves.
    others = (own.hostfile is not None or own.use_mpi) and not any(value is not None for value in typed.values())
    place = machines({} if others else environ, **typed)
    request = LaunchRequest(
        backend=own.backend,
        world_size=_processes(own, place),
        use_mpi=own.use_mpi,
        use_deepspeed=own.use_deepspeed,
        use_accelerate=own.use_accelerate or own.config_file is not None,
        config_file=own.config_file,
        hostfile=own.hostfile,
        nnodes=place.count,
        node_rank=place.rank,
        master_addr=place.master_addr,
        master_port=place.master_port if own.master_port is None else own.master_port,
        map_by=own.map_by,
    )
    return request, command


def _processes(own: argparse.Namespace, place: Machines) -> int | None:
    """Return the processes of one machine; None where neither the user nor the cluster says it."""
    if own.num_processes is None:
        return place.processes if own.world_size is None else int(own.world_size)
    if own.world_size is not None:
        raise ConfigError("--world_size (on each machine) and --num_processes (on all of them): leave one of them out.")
    each, left = divmod(own.num_processes, place.count)
    if left:
        raise ConfigError(
            f"--num_processes {own.num_processes}: counts those of all machines, and {place.count} cannot share them "
            "evenly. Type --world_size N, the processes on each."
        )
    return int(each)


def torchrun(request: LaunchRequest, command: Sequence[str]) -> Launch:
    """Return the launch of this machine's processes by torch's own launcher.

    The number of machines is always given: torchrun would read it from the environment.
    """
    where = (
        *("--nnodes", str(request.nnodes), "--node_rank", str(request.node_rank)),
        *("--nproc_per_node", str(request.world_size or 1)),
        *("--master_addr", request.master_addr, "--master_port", str(meeting_port(request))),
    )
    return Launch(argv=(sys.executable, "-u", *ENTRY, *where, "--", *command))


def deepspeed(request: LaunchRequest, command: Sequence[str], *, devices: Sequence[int] = ()) -> Launch:
    """Return the launch by DeepSpeed's launcher: on this machine, or on those of the hostfile.

    Args:
        request: what was asked for.
        command: script and arguments.
        devices: numbers of the devices to use, where they are not the first ones.
    """
    port = ("--master_port", str(meeting_port(request)))
    if request.hostfile is not None:
        hosts = ("--hostfile", str(request.hostfile), "--master_addr", Hosts.read(request.hostfile).first)
        runner = (sys.executable, "-m", "deepspeed.launcher.runner")
        return Launch(argv=(*runner, *hosts, "--no_local_rank", *port, *command))
    # The part of it that works on one machine: what comes before asks for a hostfile, takes the script's options
    # for its own where they begin alike (`--n`), and ignores which devices are visible.
    numbers = list(devices) or list(range(request.world_size or 1))
    slots = {f"machine-{number}": numbers for number in range(request.nnodes)}
    world = base64.urlsafe_b64encode(json.dumps(slots).encode()).decode()
    where = (f"--world_info={world}", f"--node_rank={request.node_rank}", "--master_addr", request.master_addr)
    program = (sys.executable, "-u", "-m", "vlm_lora.launch.deepspeed")
    return Launch(argv=(*program, *where, *port, "--no_local_rank", "--", *command))


def meeting_port(request: LaunchRequest) -> int:
    """Return the port to meet at; a free one here may be taken on another machine."""
    return request.master_port or (PORT if request.several_machines else free_port())


def loader_workers() -> int:
    """Return how many data loader workers to start: this process's share of the cores but one, at most 4.

    Where srun or mpirun started it, fewer cores than the machine's are a share already. A launcher's processes share
    what the launcher has, be it all of the machine's or what srun gave it.
    """
    cores = len(os.sched_getaffinity(0))
    shared = cores == os.cpu_count() or any(name in os.environ for name in SHARING)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if shared else 1
    return min(4, max(0, cores // processes - 1))


def free_port() -> int:
    """Return a port that nothing listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def bound(command: Sequence[str]) -> list[str]:
    """Return the command, script and arguments, such that the process that runs it ends with its launcher."""
    return [str(RANK_ENTRY), *command]


def run_launch(launch: Launch) -> int:
    """Run a launch to its end and return its exit code; no process of it outlives this call, nor this process.

    Ctrl-C, SIGTERM and SIGUSR1 go to every process as SIGUSR1, on which training saves a checkpoint and ends; a second
    Ctrl-C ends them at once. What they write passes through; where the run fails, the message of the process that
    failed first is repeated at the end.
    """
    passing = PassingOn()
    # Before there is a child: a signal in between would end this process alone, and leave the others behind.
    previous = {number: signal.signal(number, passing) for number in PASSED_ON}
    try:
        child = subprocess.Popen(
            launch.argv,
            env={**os.environ, **launch.environment, LAUNCHER: str(os.getpid())},
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=child_of_this_process(),
        )
        relay = Relay(child.stderr)
        try:
            passing.start(child.pid)
            code = child.wait()
        finally:
            end_group(child.pid)
            relay.join(timeout=GRACE)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    code = exit_code(code)
    if code not in (0, os.EX_TEMPFAIL) and passing.ended_by:  # launchers have codes of their own for it, or none
        code = 128 + passing.ended_by
    if code:
        killed = "A process was killed (SIGKILL), as the kernel does where memory runs out."
        why = relay.cause or (killed if code in KILLED else "")
        sys.stderr.write("\n" if relay.ends_in_a_line else "")
        sys.stderr.write(f"The run ended with exit code {code}.{f' {why}' if why else ''}\n")
    return code


def exit_code(code: int) -> int:
    """Return a child's exit code as a shell counts it: 128 and the number of the signal that ended it."""
    return 128 - code if code < 0 else code
