"""Manifests that are written while the training goes on: when they are waited for, and where their errors end up."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlm_lora.errors import DiskError
from vlm_lora.training.checkpoints import background
from vlm_lora.training.checkpoints.background import LARGE, Sealer
from vlm_lora.training.guards.room import in_place


class Job:
    """A seal that waits until it is let go on; it may fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.goes_on = threading.Event()
        self.thread: threading.Thread | None = None
        self._error = error

    def __call__(self) -> None:
        assert self.goes_on.wait(30)
        self.thread = threading.current_thread()
        if self._error is not None:
            raise self._error

    def prepare(self, connection: Any) -> Callable[[], None]:
        assert connection is None, "one process meets nobody"
        return self


def begun(job: Job, *, size: int = LARGE, at_once: bool = False) -> Sealer:
    sealer = Sealer()
    sealer.at_once = at_once
    sealer.seal(job.prepare, size=size, ranks=1)
    return sealer


def end_step(sealer: Sealer) -> None:
    sealer.on_step_end(None, None, None)


def test_a_large_one_is_told_of_once_it_is_whole() -> None:
    job, told = Job(), []
    sealer = begun(job)
    sealer.once_whole(lambda: told.append(threading.current_thread()))
    end_step(sealer)
    assert told == [], "the training goes on"
    job.goes_on.set()
    sealer.finish()
    assert told == [threading.current_thread()]
    assert job.thread is not threading.current_thread()
    sealer.finish()
    end_step(sealer)
    assert len(told) == 1


@pytest.mark.parametrize("how", [{"size": LARGE - 1}, {"at_once": True}])
def test_a_small_one_and_the_last_one_are_whole_when_seal_returns(how: dict[str, Any]) -> None:
    job, told = Job(), []
    job.goes_on.set()
    sealer = begun(job, **how)
    assert job.thread is threading.current_thread()
    sealer.once_whole(lambda: told.append("told"))
    assert told == ["told"]


def test_an_error_ends_the_training_at_a_steps_end() -> None:
    job, told = Job(OSError(errno.EIO, "Input/output error")), []
    sealer = begun(job)
    sealer.once_whole(lambda: told.append("told"))
    end_step(sealer)
    job.goes_on.set()
    assert sealer._thread is not None
    sealer._thread.join(30)
    with pytest.raises(OSError, match="Input/output"):
        end_step(sealer)
    assert told == [], "it does not count"
    end_step(sealer)  # it is said once


def test_the_end_waits_also_where_an_error_is_it(caplog: pytest.LogCaptureFixture) -> None:
    job = Job()

    def train(sealer: Sealer, error: Exception | None) -> None:
        with sealer.finished_at_end():
            job.goes_on.set()
            if error is not None:
                raise error

    train(begun(job), None)
    assert job.thread is not None
    for failing in (Job(), Job(RuntimeError("no disk"))):
        job = failing
        with pytest.raises(ValueError, match="bad row"):
            train(begun(job), ValueError("bad row"))
        assert job.thread is not None
    assert caplog.messages == ["The checkpoint that was saved last has no manifest, and does not count: no disk"]


def test_what_hangs_does_not_hold_up_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "_PATIENCE", 0.01)
    job = Job()
    with pytest.raises(ValueError, match="bad row"), begun(job).finished_at_end():
        raise ValueError("bad row")
    job.goes_on.set()
    assert "after 0.01 seconds it is still under way" in caplog.text


def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "checkpoint-2"
    path.mkdir()

    def fill() -> None:
        (path / "adapter_model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path / "adapter_model.safetensors"))

    sealer = Sealer()
    sealer.seal(lambda connection: lambda: in_place(fill, path, 5_000, saves=True), size=LARGE, ranks=1)
    with caplog.at_level(logging.ERROR), pytest.raises(DiskError, match=r"the disk is full.* about 5,000"):
        sealer.finish()
    assert not path.exists()
