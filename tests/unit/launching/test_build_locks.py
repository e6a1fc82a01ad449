"""Locks of torch's extension builder: left ones go, a living builder is waited for and then named."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vlm_lora.engines import build_locks
from vlm_lora.engines.build_locks import clear_left_locks, holders
from vlm_lora.errors import StalledError

BUILDS = """
import os, signal, sys
os.open(sys.argv[1], os.O_CREAT | os.O_EXCL)
print("builds", flush=True)
signal.pause()
"""
"""As torch.utils.file_baton.FileBaton does it."""


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(build_locks, "_is_shared", lambda path: False)
    place = tmp_path / "deepspeed_shm_comm" / "lock"
    place.parent.mkdir()
    return place


@contextmanager
def building(lock: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", BUILDS, str(lock)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "builds\n"
        try:
            yield process
        finally:
            process.kill()


def no_pause(seconds: float) -> None:
    pytest.fail("there is nobody to wait for")


def test_the_lock_of_a_build_that_was_killed_is_removed(lock: Path, caplog: pytest.LogCaptureFixture) -> None:
    with building(lock) as process:
        assert holders(lock) == [process.pid]
    assert lock.exists()
    clear_left_locks(60, pause=no_pause)
    assert not lock.exists()
    assert f"{lock} was left by a build that was killed" in caplog.text
    assert lock.parent.is_dir()


def test_a_builder_is_waited_for_and_then_named(lock: Path, caplog: pytest.LogCaptureFixture) -> None:
    waited: list[float] = []
    with building(lock) as process:
        with pytest.raises(StalledError, match=rf"lock: process {process.pid} has been building for 60 seconds"):
            clear_left_locks(60, pause=waited.append)
        assert sum(waited) == 60
        assert lock.exists()
        assert f"{lock}: waiting for process {process.pid}" in caplog.text


@pytest.mark.parametrize("end", ["finishes", "is killed"])
def test_a_builder_that_ends_is_waited_for_no_longer(end: str, lock: Path) -> None:
    with building(lock) as process:

        def pause(seconds: float) -> None:
            process.kill()
            process.wait()
            if end == "finishes":
                lock.unlink()

        clear_left_locks(0, pause=pause)
        assert not lock.exists()


def test_another_machines_lock_is_left_alone_until_it_is_old(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that machines share, as a home folder is."""
    monkeypatch.setattr(build_locks, "_is_shared", lambda path: True)
    lock.touch()
    with pytest.raises(StalledError, match="lock: another machine or container has been building for 10 seconds"):
        clear_left_locks(10, pause=lambda seconds: None)
    made = lock.stat().st_mtime
    os.utime(lock, (made - 601, made - 601))
    clear_left_locks(10, pause=no_pause)
    assert not lock.exists()


def test_the_next_builders_lock_is_not_removed_by_who_saw_the_left_one(lock: Path) -> None:
    """Two ranks look at once, and one of them builds before the other removes what it saw."""
    lock.touch()
    seen = lock.stat()
    assert build_locks._remove(lock, seen)
    with building(lock):
        assert not build_locks._remove(lock, seen)
        assert lock.exists()


@pytest.mark.parametrize(
    ("mounts", "shared"),
    [
        ("dev / ext4 rw 0 0\nserver:/home {} nfs4 rw 0 0\n", True),
        ("server:/ / nfs rw 0 0\ndev {} xfs rw 0 0\n", False),
        ("overlay / overlay rw 0 0\n", False),
    ],
)
def test_the_nearest_mount_says_whether_machines_share_it(
    mounts: str, shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = mounts.format(tmp_path)
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: text)
    assert build_locks._is_shared(tmp_path / "part" / "lock") is shared
