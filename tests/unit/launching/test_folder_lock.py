"""Who holds an output folder: one run at a time, and one that has ended holds none, here or on another machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from vlm_lora.errors import ConfigError
from vlm_lora.training.guards.folder_lock import LOCK, FolderLock, Holder, this_process

HOLDS = """
import signal, sys
from pathlib import Path
from vlm_lora.training.guards.folder_lock import FolderLock
FolderLock().take(Path(sys.argv[1]))
print("held", flush=True)
signal.pause()
"""


def no_pause(seconds: float) -> None:
    pytest.fail("nobody is to be waited for")


@contextmanager
def holding(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def write(path: Path, holder: Holder, beat: int = 0) -> None:
    path.write_text(json.dumps({**asdict(holder), "beat": beat}), encoding="utf-8")


def test_a_second_run_is_refused_and_told_who_holds_the_folder_by_whatever_name(tmp_path: Path) -> None:
    folder, link = tmp_path / "run", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    with holding(folder) as process:
        for name in (folder, link):
            said = rf"--output_dir {name} is in use by another run \(process {process.pid} on .*\)\. Wait .* folder"
            with FolderLock(pause=no_pause) as lock, pytest.raises(ConfigError, match=said):
                lock.take(name)
        assert (folder / LOCK).exists(), "it is the other's"


def test_a_killed_run_holds_nothing(tmp_path: Path) -> None:
    with holding(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / LOCK).exists()
        with FolderLock(pause=no_pause) as lock:
            lock.take(tmp_path)
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_of_many_that_start_at_once_in_the_folder_of_a_killed_run_one_gets_it(tmp_path: Path) -> None:
    here = this_process()
    write(tmp_path / LOCK, replace(here, started=here.started - 1))
    words = [sys.executable, "-c", HOLDS, str(tmp_path)]
    processes = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    try:
        refused = [process for process in processes if wait_for_word(process) == ""]
        assert len(refused) == 5
        assert all("is in use by another run" in str(process.communicate()[1]) for process in refused)
        (holder,) = [process for process in processes if process not in refused]
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == holder.pid
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def wait_for_word(process: subprocess.Popen[str]) -> str:
    """Return the line that a process says once it holds the folder; nothing of one that is refused."""
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_killed_run_that_nobody_has_waited_for_holds_nothing(tmp_path: Path) -> None:
    with holding(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
        with FolderLock(pause=no_pause) as lock:
            lock.take(tmp_path)


def test_a_process_that_was_given_the_number_later_is_not_the_holder(tmp_path: Path) -> None:
    here = this_process()
    write(tmp_path / LOCK, replace(here, started=here.started - 1))
    with FolderLock(pause=no_pause) as lock:
        lock.take(tmp_path)
    write(tmp_path / LOCK, here)  # the control
    with FolderLock(pause=no_pause) as lock, pytest.raises(ConfigError, match=rf"process {os.getpid()} on "):
        lock.take(tmp_path)


@pytest.mark.parametrize("part", ["host", "boot", "namespace"])
def test_another_machines_lock_is_nobodys_once_it_has_stayed_as_it_is_for_two_minutes(
    part: str, tmp_path: Path
) -> None:
    """Another start of this machine and another container on it are as far away, though a process has that number."""
    elsewhere = replace(this_process(), **{part: "elsewhere"})  # type: ignore[arg-type]
    write(tmp_path / LOCK, elsewhere)
    waited: list[float] = []
    with FolderLock(pause=waited.append) as lock:
        lock.take(tmp_path)
        assert sum(waited) == 120
        assert str(json.loads((tmp_path / LOCK).read_text())[part]) != "elsewhere"


def test_another_machines_lock_that_is_written_anew_is_held(tmp_path: Path) -> None:
    elsewhere = replace(this_process(), host="node7", pid=7)
    write(tmp_path / LOCK, elsewhere)
    waited: list[float] = []

    def pause(seconds: float) -> None:
        waited.append(seconds)
        if sum(waited) >= 30:
            write(tmp_path / LOCK, elsewhere, beat=1)

    with FolderLock(pause=pause) as lock, pytest.raises(ConfigError, match=r"in use by .*\(process 7 on node7;"):
        lock.take(tmp_path)
    assert sum(waited) == 30


@pytest.mark.parametrize("text", ["", "{", '{"pid": 1}'])
def test_a_lock_that_says_nothing_is_looked_at_as_long(text: str, tmp_path: Path) -> None:
    """Its maker was killed before it wrote, or is about to write."""
    (tmp_path / LOCK).write_text(text)
    waited: list[float] = []
    with FolderLock(pause=waited.append) as lock:
        lock.take(tmp_path)
    assert sum(waited) == 120
    (tmp_path / LOCK).write_text(text)
    lock = FolderLock(pause=lambda seconds: write(tmp_path / LOCK, this_process()))
    with lock, pytest.raises(ConfigError, match="in use by another run"):
        lock.take(tmp_path)


def test_the_holder_writes_it_anew_and_notices_that_another_took_the_folder(tmp_path: Path) -> None:
    """As where it was stopped for minutes: nothing more may be written there, and the other's lock stays."""
    path = tmp_path / LOCK

    def until(what: Callable[[], bool]) -> bool:
        return any(what() or threading.Event().wait(0.05) for _ in range(400))

    with FolderLock(refresh=0.05, pause=no_pause) as lock:
        lock.take(tmp_path)
        assert until(lambda: json.loads(path.read_text())["beat"] > 2)
        lock.check()
        path.unlink()
        write(path, replace(this_process(), host="node7", pid=7))

        def is_lost() -> bool:
            try:
                lock.check()
            except ConfigError as error:
                return "process 7 on node7 took the folder" in str(error)
            return False

        assert until(is_lost)
    assert json.loads(path.read_text())["host"] == "node7"


def test_folders_that_were_made_for_the_lock_alone_go_with_it(tmp_path: Path) -> None:
    with FolderLock() as lock:
        lock.take(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    with FolderLock() as lock:
        lock.take(tmp_path / "a" / "b")
        (tmp_path / "a" / "b" / "file").write_text("kept")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with FolderLock() as lock, pytest.raises(ConfigError, match=r"--output_dir /proc/run cannot be created or written"):
        lock.take(Path("/proc/run"))
    (tmp_path / "file").write_text("mine")
    with FolderLock() as lock:
        lock.take(tmp_path / "file")  # the run says what is wrong with it
    assert (tmp_path / "file").read_text() == "mine"
