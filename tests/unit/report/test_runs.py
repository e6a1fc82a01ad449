"""`vlm-lora runs`: what is said of runs that ended without a word, of other machines' and of none."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vlm_lora.cli.main import main
from vlm_lora.config.run_config import RunConfig
from vlm_lora.training.observers import Advance, EndReason
from vlm_lora.training.run_state import RUN_STATE, RunState, RunStateFile, started_at


def of(**changed: Any) -> RunState:
    here = {"host": socket.gethostname(), "pid": os.getpid(), "process_started": started_at(os.getpid())}
    return RunState.of({"state": "running", **here, **changed})


def test_a_run_whose_process_is_gone_was_killed() -> None:
    """Also where its number was given to another process; of another machine nobody can tell."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert of().state == "running"
    assert of(pid=gone.pid).state == "killed"
    assert of(process_started=1).state == "killed"
    assert of(pid=gone.pid, host="elsewhere").state == "running"
    assert of(pid=gone.pid, state="failed").state == "failed"


def test_runs_are_found_below_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in {
        "a/lr": {"state": "failed", "reason": "error: row 6 is bad\nmore", "step": 3, "steps": 9, "loss": 0.5},
        "b": {"state": "done", "step": 9, "steps": 9, "evaluation": {"eval_loss": 0.25, "eval_anls": 0.75}},
    }.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / RUN_STATE).write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / RUN_STATE).write_text("{", encoding="utf-8")
    assert main(["runs", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1][:7] == ["a/lr", "failed", "3", "of", "9", "0.5", "-"]
    assert lines[2][:8] == ["b", "done", "9", "of", "9", "-", "anls", "0.75"]
    assert lines[3][:2] == ["c", "unknown"]
    assert " ".join(lines[4]) == "a/lr: error: row 6 is bad"


@pytest.mark.parametrize("name", ["", "missing"])
def test_a_folder_without_runs_is_an_error(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(tmp_path / name)]) == 1
    assert ("no such folder" if name else "no run below it") in capsys.readouterr().err


@pytest.mark.parametrize("reason", EndReason)
def test_every_end_has_a_state(reason: EndReason, tmp_path: Path) -> None:
    state = RunStateFile()
    state.started(RunConfig(), SimpleNamespace(do_train=True, process_index=0, output_dir=str(tmp_path)))
    state.ended(reason, "as it was")
    written = json.loads((tmp_path / RUN_STATE).read_text(encoding="utf-8"))
    assert written["reason"] == "as it was"
    assert written["state"] == {EndReason.SIGNAL: "preempted", EndReason.ERROR: "failed"}.get(reason, "done")


def of_rank(folder: Path, rank: int) -> RunStateFile:
    state = RunStateFile()
    state.started(RunConfig(), SimpleNamespace(do_train=True, process_index=rank, output_dir=str(folder)))
    return state


def said(folder: Path) -> tuple[str, str]:
    written = json.loads((folder / RUN_STATE).read_text(encoding="utf-8"))
    return written["state"], written["reason"]


def test_a_process_that_is_ended_by_force_says_so_before(tmp_path: Path) -> None:
    of_rank(tmp_path, 0).broken_off("stood still")
    assert said(tmp_path) == ("failed", "stood still")
    of_rank(tmp_path, 0)
    assert said(tmp_path) == ("running", ""), "the next start"


def test_whichever_rank_fails_first_says_why(tmp_path: Path) -> None:
    """The first rank, which writes all else, may wait for the failed one until a launcher ends it."""
    first, other, third = (of_rank(tmp_path, rank) for rank in range(3))
    other.advanced(Advance(step=3, steps=9, rows=1, tokens=1))
    for reason in set(EndReason) - {EndReason.ERROR}:
        other.ended(reason, "as it was")
    assert said(tmp_path) == ("running", ""), "of all else the first rank speaks"
    pid = json.loads((tmp_path / RUN_STATE).read_text())["pid"]
    other.ended(EndReason.ERROR, "row 6 is bad")
    for state, reason in ((third, EndReason.ERROR), (first, EndReason.ERROR), (first, EndReason.SIGNAL)):
        state.ended(reason, "another rank has gone")
    assert said(tmp_path) == ("failed", "row 6 is bad")
    assert json.loads((tmp_path / RUN_STATE).read_text())["pid"] == pid
    first, other = of_rank(tmp_path, 0), of_rank(tmp_path, 1)
    first.ended(EndReason.SIGNAL, "SIGTERM")
    other.ended(EndReason.ERROR, "another rank has gone")
    assert said(tmp_path) == ("preempted", "SIGTERM")


def test_a_folder_of_another_machine_gets_no_state(tmp_path: Path) -> None:
    of_rank(tmp_path, 8).ended(EndReason.ERROR, "row 6 is bad")
    assert list(tmp_path.iterdir()) == []
