"""Launch requests, hostfiles, and the command lines that launchers get."""

import base64
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from vlm_lora.errors import ConfigError
from vlm_lora.launch import elastic
from vlm_lora.launch.launching import (
    Hosts,
    Launch,
    LaunchRequest,
    deepspeed,
    loader_workers,
    parse_launch,
    run_launch,
    torchrun,
)

STEP = {
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "MASTER_PORT": "29511",
}


def parse(*words: str, environ: Mapping[str, str] | None = None) -> tuple[LaunchRequest, list[str]]:
    return parse_launch("gaudi_spawn.py", list(words), backend="habana", environ=environ or {})


def test_own_flags_stand_before_the_script_and_spaces_survive() -> None:
    request, command = parse(
        *("--world_size", "8", "--use_mpi", "run.py", "--prompt", "two words", "--world_size", "3", "--n", "1")
    )
    assert (request.world_size, request.use_mpi, request.backend) == (8, True, "habana")
    assert command == ["run.py", "--prompt", "two words", "--world_size", "3", "--n", "1"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--world_size", "0", "run.py"], "1 or more"),
        (["--world_size", "many", "run.py"], "many"),
        (["--use_mpi", "--use_deepspeed", "run.py"], "choose one"),
        (["--hostfile", "hosts", "run.py"], "--use_deepspeed"),
        (["--map_by", "rack", "run.py"], "rack"),
        (["--world_siz", "8", "run.py"], "--world_size"),
        (["--world_size", "8"], "be started"),
        (["--use_mpi", "--config_file", "a.yaml", "run.py"], "--use_mpi and --use_accelerate are two launchers"),
        (["--nnodes", "2", "run.py"], "--node_rank is missing"),
        (["--nnodes", "2", "--node_rank", "0", "--master_addr", "a", "--use_mpi", "run.py"], "mpirun starts those of"),
        (["--node_ran", "1", "run.py"], "--node_rank"),
        (["--world_size", "2", "--num_processes", "2", "run.py"], "leave one of them out"),
        (
            ["--nnodes", "2", "--node_rank", "0", "--master_addr", "a", "--num_processes", "7", "run.py"],
            "--num_processes 7: .* 2 cannot share them evenly",
        ),
    ],
)
def test_wrong_words(words: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse(*words)


@pytest.mark.parametrize(
    ("words", "on_each"),
    [
        ((), None),
        (("--num_processes", "8"), 8),
        (("--num_processes", "8", "--num_machines", "2", "--machine_rank", "1", "--main_process_ip", "first"), 4),
    ],
)
def test_processes_as_accelerate_counts_them(words: tuple[str, ...], on_each: int | None) -> None:
    assert parse(*words, "run.py")[0].world_size == on_each


def test_hostfile(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# the cluster\n10.0.0.1 slots=8\n\n10.0.0.2 slots=4  # half\n")
    hosts = Hosts.read(path)
    assert dict(hosts.slots) == {"10.0.0.1": 8, "10.0.0.2": 4}
    assert hosts.first == "10.0.0.1"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "names no machine"),
        ("10.0.0.1", "line 1"),
        ("a slots=8\na slots=8", "twice"),
        ("a slots=0", "line 1"),
        ("a 8", "slots=8"),
    ],
)
def test_wrong_hostfile(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(ConfigError, match=named):
        Hosts.read(path)


def test_several_machines_as_text(tmp_path: Path) -> None:
    """A multi-node run cannot be started here: its command line is checked word for word."""
    path = tmp_path / "hosts"
    path.write_text("10.0.0.1 slots=8\n10.0.0.2 slots=8\n")
    request, command = parse(
        "--use_deepspeed", "--hostfile", str(path), "--master_port", "29511", "run.py", "--a", "b c"
    )
    assert deepspeed(request, command).argv == (
        *(sys.executable, "-m", "deepspeed.launcher.runner"),
        *("--hostfile", str(path), "--master_addr", "10.0.0.1", "--no_local_rank", "--master_port", "29511"),
        *("run.py", "--a", "b c"),
    )


def test_one_machine_as_text() -> None:
    request, command = parse("--world_size", "4", "--master_port", "29511", "run.py", "x y")
    assert torchrun(request, command).argv == (
        *(sys.executable, "-u", "-m", "vlm_lora.launch.elastic", "--nnodes", "1", "--node_rank", "0"),
        *("--nproc_per_node", "4", "--master_addr", "127.0.0.1", "--master_port", "29511", "--", "run.py", "x y"),
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--nnodes", "2", "--node_rank", "1", "--master_addr", "n1", "--nproc_per_node", "8"],
        ["--num_machines", "2", "--machine_rank", "1", "--main_process_ip", "n1", "--world-size", "8"],
        ["--nnodes", "2", "--world_size", "8"],
        ["--world_size", "8"],
    ],
)
def test_one_of_several_machines_as_text(words: list[str]) -> None:
    """As torchrun and as accelerate spell it, and as Slurm says it."""
    request, command = parse(*words, "run.py", environ=STEP)
    assert torchrun(request, command).argv[4:] == (
        *("--nnodes", "2", "--node_rank", "1", "--nproc_per_node", "8"),
        *("--master_addr", "n1", "--master_port", "29511", "--", "run.py"),
    )
    argv = deepspeed(request, command).argv
    assert argv[3] == "vlm_lora.launch.deepspeed"
    slots = json.loads(base64.urlsafe_b64decode(argv[4].removeprefix("--world_info=")))
    assert [len(numbers) for numbers in slots.values()] == [8, 8]
    assert argv[5:] == (
        *("--node_rank=1", "--master_addr", "n1", "--master_port", "29511", "--no_local_rank", "--", "run.py"),
    )


def test_mpirun_and_hostfiles_know_their_machines_themselves(tmp_path: Path) -> None:
    batch = {"SLURM_JOB_NUM_NODES": "2"}
    assert parse("--use_mpi", "run.py", environ=batch)[0].nnodes == 1
    hosts = tmp_path / "hosts"
    assert parse("--use_deepspeed", "--hostfile", str(hosts), "run.py", environ=batch)[0].nnodes == 1
    with pytest.raises(ConfigError, match="srun"):
        parse("--use_deepspeed", "run.py", environ=batch)


@pytest.mark.parametrize("code", [0, 1, 7, 203])
def test_exit_code_is_passed_on(code: int) -> None:
    assert run_launch(Launch(argv=(sys.executable, "-c", f"import sys; sys.exit({code})"))) == code


def test_a_killed_child_is_an_error_and_its_children_end(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    code = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(mark)!r}, 'w').write(str(child.pid))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert run_launch(Launch(argv=(sys.executable, "-c", code))) == 137
    status = Path(f"/proc/{mark.read_text()}/status")
    assert not status.exists() or "State:\tZ" in status.read_text()


@pytest.mark.parametrize(
    ("cores", "variables", "workers"),
    [
        (64, {}, 4),
        (16, {"LOCAL_WORLD_SIZE": "8"}, 4),  # bound by srun or mpirun: 16 of 64 are its own
        (3, {"LOCAL_WORLD_SIZE": "8"}, 2),
        (1, {}, 0),
        (64, {"LOCAL_WORLD_SIZE": "32"}, 1),  # bound to nothing
        (16, {"LOCAL_WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "none"}, 1),  # srun bound the launcher
        (16, {"LOCAL_WORLD_SIZE": "8", "CROSS_SIZE": "2"}, 1),
    ],
)
def test_loader_workers_by_the_cores_of_a_process(
    cores: int, variables: Mapping[str, str], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID", "CROSS_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    assert loader_workers() == workers


@pytest.mark.parametrize(("processes", "before", "then"), [("2", None, "1"), ("2", "6", "6"), ("1", None, None)])
def test_torchs_launcher_finds_set_what_it_would_set_with_a_warning(
    processes: str, before: str | None, then: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread for each of several processes, where nobody has said how many."""
    monkeypatch.setenv("OMP_NUM_THREADS", before or "")
    if before is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    found = []
    monkeypatch.setattr("torch.distributed.run.run", lambda asked: found.append(os.environ.get("OMP_NUM_THREADS")))
    monkeypatch.setattr("vlm_lora.launch.elastic.pass_signal_on", lambda: None)
    assert elastic.main(["--nproc_per_node", processes, "--", "run.py", "--do_train"]) == 0
    assert found == [then]
