"""`RUN_STATE.json` in a run's output folder: what state it is in, how far it has come, and who runs it."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.whole_files import read_json, write_json
from vlm_lora.training.observers import Advance, Beginning, EndReason, RunObserver

logger = logging.getLogger(__name__)

RUN_STATE = "RUN_STATE.json"

_STATES = {
    EndReason.FINISHED: "done",
    EndReason.NOTHING_LEFT: "done",
    EndReason.STOPPED_EARLY: "done",
    EndReason.SIGNAL: "preempted",
    EndReason.ERROR: "failed",
}

_EVERY = 10.0
"""Seconds between two notes of the step alone."""


class RunStateFile(RunObserver):
    """Writes `RUN_STATE.json` on the first process of a training: whole each time, by a temporary file and a rename.

    It stands there as `running` from when the folder is the run's own. A run that is killed leaves it so, with the
    number of a process that is gone. Another process writes there only that the run failed, because the first one may
    wait for it until a launcher ends it; whichever says so first gives the reason.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._is_first = False
        self._content: dict[str, Any] = {}
        self._written_at = 0.0

    def started(self, run: RunConfig, arguments: Any) -> None:
        """Write that the run is under way; where it goes on, what it had come to before stands until there is news."""
        if not arguments.do_train:
            return
        self._path = Path(arguments.output_dir) / RUN_STATE
        self._is_first = arguments.process_index == 0
        if not self._is_first:
            return
        earlier = read_json(self._path)
        self._note(
            **{name: earlier.get(name) for name in ("step", "steps", "checkpoint", "loss", "evaluation")},
            state="running",
            reason="",
            host=socket.gethostname(),
            pid=os.getpid(),
            process_started=started_at(os.getpid()),
            started=_now(),
        )

    def begins(self, beginning: Beginning) -> None:
        """Write how many steps there are, and which were made before."""
        known = f"checkpoint-{beginning.step}"
        there = self._path is not None and (self._path.parent / known).is_dir()
        self._note(step=beginning.step, steps=beginning.steps, checkpoint=known if there else None)

    def advanced(self, advance: Advance) -> None:
        """Note a step, and write it where the last note is older than ten seconds."""
        self._content["step"] = advance.step
        if time.monotonic() - self._written_at >= _EVERY:
            self._note()

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """Note the loss; it is written with what comes next."""
        self._content["loss"] = figures["loss"]

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        """Write what an evaluation measured."""
        self._note(evaluation={name: value for name, value in figures.items() if isinstance(value, int | float)})

    def saved(self, step: int, folder: Path) -> None:
        """Write which checkpoint there is."""
        self._note(step=step, checkpoint=folder.name)

    def ended(self, reason: EndReason, said: str) -> None:
        """Write how the run ended."""
        if self._path is None:
            return
        try:
            there = read_json(self._path)
        except OSError:  # of what a disk does not give back nothing is known
            there = {}
        state = there.get("state")
        if state == "failed" or (not self._is_first and (state != "running" or reason is not EndReason.ERROR)):
            return  # another process has said why, or how this one ends is nothing new
        self._content = self._content if self._is_first else there
        self._write(state=_STATES[reason], reason=said)

    def broken_off(self, said: str) -> None:
        """Write that the run failed."""
        self.ended(EndReason.ERROR, said)

    def _note(self, **changed: Any) -> None:
        if self._is_first:
            self._write(**changed)

    def _write(self, **changed: Any) -> None:
        assert self._path is not None  # it started
        self._content |= changed
        self._written_at = time.monotonic()
        try:
            write_json(self._path, {**self._content, "updated": _now()})
        except OSError as error:
            # The run is worth more than the note about it.
            logger.warning("%s cannot be written: %s.", self._path, error.strerror)


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What a run's `RUN_STATE.json` says, and what became of a run that could not say it any more."""

    state: str
    """running, preempted, failed, done; killed where it says that it runs and its process is gone."""
    content: Mapping[str, Any]
    """The file's content."""

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> RunState:
        """Return the state that a file's content stands for, seen from this machine.

        Whether a process of another machine is gone is not to be seen: there the content's word stands.
        """
        state = str(content.get("state", "unknown"))
        if state == "running" and content.get("host") == socket.gethostname():
            pid = content.get("pid")
            alive = isinstance(pid, int) and started_at(pid) == content.get("process_started")
            state = "running" if alive else "killed"
        return cls(state=state, content=content)

    @property
    def was_interrupted(self) -> bool:
        """Whether a signal, or whatever killed its process, ended the run."""
        return self.state in ("preempted", "killed", "running")  # the lock of one that does run was refused before


def started_at(pid: int) -> int | None:
    """Return when a process started, in the kernel's ticks since its own start (proc(5)); None where it is gone.

    Numbers of processes are given again, this one with it is not.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if stat[0] == "Z" else int(stat[19])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
