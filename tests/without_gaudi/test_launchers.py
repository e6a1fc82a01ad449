"""Two processes by each launcher on the CPU: flags, machines, and what happens when one of them dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from support.killed_launchers import is_running
from support.rows import write_uneven_rows
from support.runs import script_flags
from support.warm import warmed
from vlm_lora.launch.launching import free_port

ROOT = Path(__file__).parents[2]
MEET = ROOT / "tests" / "support" / "launched" / "meet.py"
VLM_LORA = Path(sys.executable).with_name("vlm-lora")
LAUNCH: list[str | Path] = [VLM_LORA, "launch", "--backend", "cpu"]
LAUNCHERS = ["", "--use_accelerate", "--use_deepspeed"]
ZERO3 = f"--config_file={ROOT / 'launchers' / 'accelerate' / 'zero3.yaml'}"


def environment(**variables: str) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **variables}


def run(words: Sequence[str | Path], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        warmed(words),
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        cwd=ROOT,
    )


def launch(launcher: str, *words: str | Path) -> list[str | Path]:
    return [*LAUNCH, *([launcher] if launcher else []), *words]


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("rank*.json"))]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_and_a_scripts_own_flags(launcher: str, tmp_path: Path) -> None:
    """Options that begin like the launchers' own reach the script; torchrun itself refuses them."""
    own = ["--n", "1", "--num_processes", "7", "--m", "two words", "--", "--master_port"]
    done = run(launch(launcher, "--world_size", "2", MEET, "count", tmp_path, *own))
    assert done.returncode == 0, done.stderr
    ranks = records(tmp_path)
    assert [rank["argv"] for rank in ranks] == [own, own]
    assert [(rank["world_size"], rank["total"]) for rank in ranks] == [(2, 3.0), (2, 3.0)]
    name = {"": "torchrun", "--use_accelerate": "accelerate launch", "--use_deepspeed": "DeepSpeed's launcher"}
    assert ranks[0]["placement"].startswith(f"Started by {name[launcher]}: process 0 of 2, process 0 of 2 on machine 0")


def test_torchrun_itself_refuses_such_a_flag(tmp_path: Path) -> None:
    """Why the launch above separates the script's options from its own."""
    done = run([sys.executable, "-m", "torch.distributed.run", MEET, "count", tmp_path, "--n", "1"])
    assert done.returncode == 2
    assert "ambiguous option: --n" in done.stderr


@pytest.mark.parametrize("launcher", [*LAUNCHERS, pytest.param(ZERO3, id="accelerate and DeepSpeed")])
def test_two_machines(launcher: str, tmp_path: Path) -> None:
    """Two launchers on this machine, each as one machine of two, meet over loopback."""
    port = str(free_port())
    where = ["--nnodes", "2", "--master_addr", "127.0.0.1", "--master_port", port, "--world_size", "1"]
    started = [
        subprocess.Popen(
            warmed(launch(launcher, *where, "--node_rank", str(number), MEET, "count", tmp_path)),
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (1, 0)
    ]
    try:
        errors = [process.communicate(timeout=200)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], errors
    assert "Machine 0 of 2, meeting at 127.0.0.1" in errors[1]
    ranks = records(tmp_path)
    assert [(rank["world_size"], rank["total"]) for rank in ranks] == [(2, 3.0), (2, 3.0)]
    assert [f"on machine {number} of 2" in rank["placement"] for number, rank in enumerate(ranks)] == [True, True]


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize(
    ("mode", "codes", "said"),
    [
        ("fail", (7,), "error: rank 1 has had enough"),
        # As a shell and as DeepSpeed's launcher count it.
        ("killed", (137, 247), "A process was killed (SIGKILL), as the kernel does where memory runs out."),
    ],
)
def test_a_rank_that_dies_ends_the_run(
    launcher: str, mode: str, codes: tuple[int, ...], said: str, tmp_path: Path
) -> None:
    """The other waits for it in a collective; without us for half an hour."""
    begun = time.monotonic()
    done = run(launch(launcher, "--world_size", "2", MEET, mode, tmp_path))
    assert time.monotonic() - begun < 150, "60 seconds to end, and a generous start"
    last = done.stderr.strip().splitlines()[-1]
    # The launcher may see the other rank first: its collective lost its partner, an exception or an abort of gloo's.
    assert done.returncode in (*codes, 1, 134, 250), done.stderr
    assert last.startswith(f"The run ended with exit code {done.returncode}.")
    # A killed rank says nothing itself: that it was killed is known by its exit code only.
    if mode == "fail" or done.returncode in codes:
        assert last.endswith(f" {said}")
    ranks = records(tmp_path)
    assert len(ranks) == 2
    assert [rank["pid"] for rank in ranks if is_running(rank["pid"])] == []


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_message_of_the_rank_that_failed_is_last(
    launcher: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """One rank meets a bad image; the other only notices that its partner has gone."""
    data = write_uneven_rows(tmp_path / "data", rows=8)
    (data / "train-6.png").write_text("no image", encoding="utf-8")
    flags = script_flags(
        model_folder("gemma3"),
        data,
        tmp_path / "out",
        do_train=True,
        per_device_train_batch_size=1,
        max_steps=8,
        skip_check=True,
    )
    done = run(launch(launcher, "--world_size", "2", ROOT / "examples" / "run_lora_vlm.py", *flags))
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("The run ended with exit code 1. error: ")
    assert "row 6 (line 7): " in last
    assert "train-6.png: not a readable image" in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_warning_signal_reaches_every_rank_and_ends_none(launcher: str, tmp_path: Path) -> None:
    """SIGUSR1 is what Slurm sends before the time is up: the ranks decide what to do about it."""
    words = launch(launcher, "--world_size", "2", MEET, "signal", tmp_path)
    process = subprocess.Popen(warmed(words), env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 150
    while len(list(tmp_path.glob("ready*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)
    errors = process.communicate(timeout=150)[1]
    assert process.returncode == 0, errors
    assert sorted(path.name for path in tmp_path.glob("signal*")) == ["signal0", "signal1"]


@pytest.mark.parametrize(
    ("words", "variables", "named"),
    [
        (["--nnodes", "2", "x.py"], {}, "--node_rank is missing"),
        (["--use_deepspeed", "--use_accelerate", "x.py"], {}, "are two launchers"),
        (["--config_file", "none.yaml", MEET], {}, "none.yaml"),
        (["--config_file", ROOT / "launchers/accelerate/fsdp2.yaml", MEET], {}, "FSDP needs GPUs"),
        ([MEET], {"SLURM_JOB_NUM_NODES": "4"}, "srun --ntasks-per-node=1"),
    ],
)
def test_wrong_launches(words: list[str | Path], variables: Mapping[str, str], named: str, tmp_path: Path) -> None:
    done = run([*LAUNCH, *words, "count", tmp_path], **variables)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("error: ") == 1
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert records(tmp_path) == []


def test_half_set_variables_stop_training(tmp_path: Path) -> None:
    words: list[str | Path] = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", tmp_path / "out"]
    done = run([VLM_LORA, "train", *words], WORLD_SIZE="2", RANK="0", LOCAL_RANK="0")
    assert done.returncode == 1
    assert "lacks MASTER_ADDR and MASTER_PORT" in done.stderr


@pytest.mark.parametrize(
    ("words", "shown"),
    [(["launch", "--help"], "--node_rank K"), (["launch", "--world_size", "2", "train", "--help"], "vlm-lora train: ")],
)
def test_help(words: list[str], shown: str) -> None:
    done = run([VLM_LORA, *words])
    assert done.returncode == 0
    assert shown in done.stdout
