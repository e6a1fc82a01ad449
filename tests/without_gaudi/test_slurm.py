"""Slurm's batch script with stand-ins for srun and scontrol; and srun that starts every process itself."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from support.warm import programs

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launchers" / "slurm" / "train.sbatch"
MEET = ROOT / "tests" / "support" / "launched" / "meet.py"
STAND_INS = ROOT / "tests" / "support" / "slurm"


def job(folder: Path) -> dict[str, str]:
    python = Path(sys.executable)
    path = os.pathsep.join([str(STAND_INS), str(programs(python)), str(python.parent), os.environ["PATH"]])
    return {
        **os.environ,
        "PATH": path,
        "OMP_NUM_THREADS": "1",
        "STAND_IN": str(folder),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "32",
        "SLURM_JOB_NODELIST": "127.0.0.[1-2]",
    }


def words(mode: str, folder: Path) -> list[str]:
    own = ["--world_size", "1", str(MEET), mode, str(folder), "--prompt", "two words"]
    return ["bash", str(SCRIPT), *own, "--output_dir", str(folder / "out")]


def batch(mode: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words(mode, folder), env=job(folder), capture_output=True, text=True, check=False, timeout=200
    )


def ranks(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("rank*.json"))]


def requeued(folder: Path) -> str:
    path = folder / "scontrol.txt"
    return path.read_text(encoding="utf-8") if path.exists() else ""


@pytest.mark.parametrize("resumes", [False, True])
def test_two_machines(resumes: bool, tmp_path: Path) -> None:
    if resumes:
        (tmp_path / "out" / "checkpoint-10").mkdir(parents=True)
        (tmp_path / "out" / "checkpoint-10" / "trainer_state.json").touch()
    else:
        (tmp_path / "out" / "checkpoint-9").mkdir(parents=True)  # cut short
    done = batch("count", tmp_path)
    assert done.returncode == 0, done.stderr
    given = json.loads((tmp_path / "srun.json").read_text(encoding="utf-8"))
    expected = ["--ntasks-per-node=1", "--cpus-per-task=32", "--kill-on-bad-exit=1", "vlm-lora", "launch"]
    assert given == [
        *expected,
        *words("count", tmp_path)[2:],
        *(["--resume_from_checkpoint", "true"] if resumes else []),
    ]
    assert [(rank["world_size"], rank["total"]) for rank in ranks(tmp_path)] == [(2, 3.0), (2, 3.0)]
    assert "on machine 1 of 2" in ranks(tmp_path)[1]["placement"]
    assert requeued(tmp_path) == ""


def test_a_failure_is_passed_on_and_not_repeated(tmp_path: Path) -> None:
    done = batch("fail", tmp_path)
    assert done.returncode == 7, done.stderr
    assert "error: rank 1 has had enough" in done.stderr
    assert requeued(tmp_path) == ""


@pytest.mark.parametrize("finished", [False, True])
def test_before_the_time_is_up_ranks_are_told_and_the_job_is_requeued(finished: bool, tmp_path: Path) -> None:
    if finished:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "all_results.json").write_text("{}")
    process = subprocess.Popen(words("signal", tmp_path), env=job(tmp_path), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 150
    while len(list(tmp_path.glob("ready*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)
    errors = process.communicate(timeout=150)[1]
    assert process.returncode == 0, errors
    assert sorted(path.name for path in tmp_path.glob("signal*")) == ["signal0", "signal1"]
    assert requeued(tmp_path) == ("" if finished else f"requeue {os.getpid()}\n")


def test_a_run_that_saved_and_ended_is_requeued(tmp_path: Path) -> None:
    """Whoever told it: the shell heard nothing."""
    assert batch("ended", tmp_path).returncode == 75
    assert requeued(tmp_path) == f"requeue {os.getpid()}\n"


def test_output_dir_must_be_known(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(SCRIPT), "train", "--config", "run.yaml"],
        env=job(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "--output_dir DIR" in done.stderr
    assert not (tmp_path / "srun.json").exists()


def test_srun_starts_every_process(tmp_path: Path) -> None:
    """`srun --ntasks-per-node=8 vlm-lora train`: no launcher, torch's variables are made from srun's."""
    done = subprocess.run(
        ["srun", "--ntasks-per-node=1", "python", str(MEET), "count", str(tmp_path)],
        env=job(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert [rank["total"] for rank in ranks(tmp_path)] == [3.0, 3.0]
    assert ranks(tmp_path)[0]["placement"].startswith(
        "Started by srun: process 0 of 2, process 0 of 1 on machine 0 of 2"
    )


def test_the_script_is_sound(tmp_path: Path) -> None:
    check = [str(Path(sys.executable).with_name("shellcheck"))]
    scripts = [SCRIPT, STAND_INS / "scontrol"]
    for command in (["bash", "-n"], check):
        done = subprocess.run([*command, *map(str, scripts)], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "wrong.sh"
    wrong.write_text("#!/bin/bash\nfor word in $@; do rm $word; done\n")
    assert subprocess.run([*check, str(wrong)], capture_output=True, check=False, timeout=60).returncode == 1


def test_lines_for_sbatch_stand_before_the_first_command() -> None:
    """Slurm stops reading them there."""
    lines = SCRIPT.read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    settings = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert settings
    assert max(settings) < first
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", lines[number]) for number in settings)
