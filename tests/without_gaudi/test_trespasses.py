"""Runs that would write into a folder of others: each is refused before it writes, and what lies there stays."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.rows import write_uneven_rows
from support.runs import run, script_flags
from support.warm import warmed
from vlm_lora.cli.main import run_script
from vlm_lora.report.run_page.page import MARK
from vlm_lora.training.guards.folder_lock import LOCK

HOLDS = """
import signal, sys
from pathlib import Path
from vlm_lora.training.guards.folder_lock import FolderLock
FolderLock().take(Path(sys.argv[1]))
print("held", flush=True)
signal.pause()
"""

TRAINS = {"do_train": True, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_uneven_rows(tmp_path_factory.mktemp("rows") / "data", rows=4, validation=2)


@pytest.fixture(scope="module")
def whole(model_folder: Callable[[str], Path], data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its page and a file of the user's. Copy it before changing it."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    run(model_folder("gemma3"), data, output, **TRAINS, do_eval=True)
    (output / "report.html").write_bytes(MARK + b"the page of that run")
    (output / "checkpoint-7").mkdir()
    (output / "checkpoint-7" / "mine").write_text("of another run", encoding="utf-8")
    return output


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != LOCK
    }


@pytest.fixture
def held(whole: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the run that another process holds."""
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield folder
        process.kill()


@pytest.mark.parametrize(
    "flags",
    [
        TRAINS,
        {**TRAINS, "resume_from_checkpoint": "true", "max_steps": 3},
        {**TRAINS, "overwrite_output_dir": True},
        {**TRAINS, "save_total_limit": 1, "overwrite_output_dir": True},
        {"do_eval": True},
    ],
)
def test_a_folder_that_a_run_holds_is_left_as_it_is(
    flags: dict[str, object],
    held: Path,
    model_folder: Callable[[str], Path],
    data: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = contents(held)
    assert run_script(script_flags(model_folder("gemma3"), data, held, **{**flags, "report_page": True})) == 1
    said = capsys.readouterr().err
    assert f"error: --output_dir {held} is in use by another run (process " in said
    assert said.count("error: ") == 1
    assert contents(held) == before


def test_a_finished_run_is_refused_and_keeps_its_page(
    whole: Path,
    model_folder: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The page of a run that was refused would say of the finished one that it failed."""
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    before = contents(folder)
    assert run_script(script_flags(model_folder("gemma3"), data, folder, **TRAINS, report_page=True)) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert contents(folder) == before
    assert not (folder / LOCK).exists(), "the lock is let go of"


def test_two_processes_say_once_that_a_folder_holds_a_run(
    whole: Path, model_folder: Callable[[str], Path], data: Path
) -> None:
    before = contents(whole)
    launch = [str(Path(sys.executable).with_name("vlm-lora")), "launch", "--backend", "cpu", "--world_size", "2"]
    words = [*launch, "train", *script_flags(model_folder("gemma3"), data, whole, **TRAINS)]
    done = subprocess.run(warmed(words), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert said[0].startswith(f"error: --output_dir {whole} already holds a run (")
    assert done.stderr.splitlines()[-1] == f"The run ended with exit code 1. {said[0]}"
    assert contents(whole) == before


def test_writing_over_a_run_and_keeping_few_checkpoints_leaves_what_is_not_the_runs(
    whole: Path, model_folder: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    (folder / "my_results.json").write_text("{}", encoding="utf-8")
    (folder / LOCK).write_bytes(dead_lock(tmp_path / "dead"))
    run(model_folder("gemma3"), data, folder, **TRAINS, overwrite_output_dir=True, save_total_limit=1)
    assert (folder / "my_results.json").read_text(encoding="utf-8") == "{}"
    assert (folder / "checkpoint-7" / "mine").read_text(encoding="utf-8") == "of another run"
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-7"]
    assert not (folder / LOCK).exists()


def dead_lock(folder: Path) -> bytes:
    """What a run that was killed leaves: the lock of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGKILL)
    return (folder / LOCK).read_bytes()
