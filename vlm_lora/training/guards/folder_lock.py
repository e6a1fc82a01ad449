"""One run at a time in an output folder: a lock file that says who holds it, and when nobody does any more.

The file is made by exclusive creation and says host, process and that process's start time; its holder writes it anew
every half minute. A process of the same machine is asked for by its number and start time. One of another machine, or
of another container, cannot be asked: there the file is looked at for two minutes, by this machine's clock alone, and
belongs to nobody if it stays as it is. So a job that a scheduler starts again elsewhere goes on without a hand.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlm_lora.errors import ConfigError

logger = logging.getLogger(__name__)

LOCK = "_run.lock"
"""The file's name. What begins with an underscore is left out by the trainer's push to the Hub."""

REFRESH = 30.0
"""Seconds after which a holder writes its file anew."""

UNCHANGED = 120.0
"""Seconds that the file of another machine's process stays as it is until it counts as nobody's."""

_LOOK = 2.0
"""Seconds between two looks at it."""

_LENGTH = 512
"""Bytes of the file, always: it is overwritten in place, so that a reader sees the old text or the new one."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that holds a folder. Numbers of processes mean something within one host, boot and namespace."""

    host: str
    boot: str
    """The kernel's name for this start of the machine (random(4), boot_id); empty where there is none."""
    namespace: str
    """The numbering that `pid` is of (pid_namespaces(7)): containers of one machine have their own."""
    pid: int
    started: int
    """When the process started, in clock ticks since boot (proc(5), `stat` field 22); 0 where nothing says it."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def is_of_here(self) -> bool:
        """Say whether this process can see that one."""
        here = this_process()
        return (self.host, self.boot, self.namespace) == (here.host, here.boot, here.namespace)

    def is_running(self) -> bool:
        """Say whether the process is there; another that was given its number later is not it."""
        try:
            with contextlib.suppress(PermissionError):  # another user's: it is there
                os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        state, started = _stat(self.pid)
        return state not in ("Z", "X") and started in (0, self.started)


def this_process() -> Holder:
    """Return what a lock file says of this process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # not Linux
        boot = namespace = ""
    pid = os.getpid()
    return Holder(host=socket.gethostname(), boot=boot, namespace=namespace, pid=pid, started=_stat(pid)[1])


def _stat(pid: int) -> tuple[str, int]:
    """Return a process's state and start; nothing of one that the system does not show."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", 0
    words = text.rpartition(")")[2].split()
    return words[0], int(words[19])


_locks: list[FolderLock] = []
"""Those of this process."""


def let_go() -> None:
    """Release what this process holds, before it ends at once."""
    for lock in [*_locks]:
        lock.release()


class FolderLock:
    """Holds a folder from `take` until the context ends, however it ends.

    Args:
        refresh: seconds after which the file is written anew.
        unchanged: seconds that another machine's file is looked at.
        pause: waits so many seconds.
    """

    def __init__(
        self, *, refresh: float = REFRESH, unchanged: float = UNCHANGED, pause: Callable[[float], Any] = time.sleep
    ) -> None:
        self._refresh, self._unchanged, self._pause = refresh, unchanged, pause
        self._path: Path | None = None
        self._descriptor = -1
        self._beats = 0
        self._over = threading.Event()
        self._made: list[Path] = []
        self._lost = False

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def take(self, folder: Path) -> None:
        """Hold a folder, which is made where it is missing; a path that is no folder is left to others to refuse.

        Raises:
            ConfigError: another run holds it, or it cannot be written.
        """
        if folder.exists() and not folder.is_dir():
            return
        path = folder / LOCK
        try:
            self._made = [place for place in (folder, *folder.parents) if not place.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            while not self._create(path):
                self._clear_if_stale(path)
        except OSError as error:
            raise ConfigError(f"--output_dir {folder} cannot be created or written: {error.strerror}.") from error
        self._path = path
        _locks.append(self)
        threading.Thread(target=self._keep, daemon=True).start()

    @property
    def folder(self) -> Path | None:
        """The folder that is held; None before and after."""
        return None if self._path is None else self._path.parent

    def check(self) -> None:
        """Make sure, before something is written, that the folder is still this run's.

        Raises:
            ConfigError: this process was stopped for so long that another run took the folder.
        """
        if self._lost and self._path is not None:
            holder = _holder(_read(self._path) or b"")
            raise ConfigError(
                f"--output_dir {self._path.parent} is no longer this run's: it was stopped for minutes, and "
                f"{holder or 'another run'} took the folder meanwhile. Nothing more is written there."
            )

    def release(self) -> None:
        """Let go; a folder that was made for the lock, and holds nothing else, goes as well."""
        self._over.set()
        path, self._path = self._path, None
        if path is not None:
            _locks.remove(self)
            if _is_same(path, self._descriptor):
                path.unlink(missing_ok=True)
            os.close(self._descriptor)
        for folder in self._made:
            with contextlib.suppress(OSError):  # it is not empty: the run wrote into it
                folder.rmdir()
        self._made = []

    def _create(self, path: Path) -> bool:
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            return False
        try:
            self._write()
        except OSError:
            os.close(self._descriptor)
            path.unlink(missing_ok=True)
            raise
        return True

    def _write(self) -> None:
        text = json.dumps({**asdict(this_process()), "beat": self._beats}).ljust(_LENGTH - 1) + "\n"
        self._beats += 1
        os.pwrite(self._descriptor, text.encode(), 0)
        os.fsync(self._descriptor)

    def _keep(self) -> None:
        """Write the file anew until the end, and see whether the folder still has it."""
        while not self._over.wait(self._refresh):
            path = self._path
            if path is None:
                return
            try:
                self._lost = not _is_same(path, self._descriptor)
                if not self._lost:
                    self._write()
            except OSError as error:
                logger.debug("%s: %s", path, error)  # the next time may do

    def _clear_if_stale(self, path: Path) -> None:
        """Take a lock away that nobody holds.

        Raises:
            ConfigError: somebody does.
        """
        text = _read(path)
        if text is None:
            return
        holder = _holder(text)
        if holder is not None and holder.is_of_here():
            if holder.is_running():
                raise _held(path, holder)
        else:
            logger.warning(
                "%s is held by %s, which cannot be asked from here. If the file stays as it is for %g seconds, its "
                "holder has ended, and this run goes on.",
                path,
                holder or "a process that is just starting or was killed while it started",
                self._unchanged,
            )
            for _ in range(max(1, round(self._unchanged / _LOOK))):
                self._pause(_LOOK)
                now = _read(path)
                if now != text:
                    if now is not None and holder is not None:
                        raise _held(path, _holder(now) or holder)
                    return
        _take_away(path, text)
        logger.info("%s was left by a run that has ended (%s).", path, holder or "nobody known")


def _held(path: Path, holder: Holder) -> ConfigError:
    return ConfigError(
        f"--output_dir {path.parent} is in use by another run ({holder}; {LOCK} in it says so). Wait for that run to "
        "end, or type another folder: two runs in one folder would mix their checkpoints and results."
    )


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _holder(text: bytes) -> Holder | None:
    """Return who a lock file says holds it; None where it says nothing that can be read."""
    try:
        content = json.loads(text)
        return Holder(
            host=str(content["host"]),
            boot=str(content["boot"]),
            namespace=str(content["namespace"]),
            pid=int(content["pid"]),
            started=int(content["started"]),
        )
    except (ValueError, KeyError, TypeError):
        return None


def _take_away(path: Path, text: bytes) -> None:
    """Remove a lock file if it still says `text`; one that a third run has made meanwhile is put back."""
    aside = path.with_name(f"{LOCK}.{socket.gethostname()}.{os.getpid()}")
    with _alone(path.parent):
        if _read(path) != text:
            return
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside)
            if aside.read_bytes() != text:
                with contextlib.suppress(OSError):
                    os.link(aside, path)
            aside.unlink()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes of this machine out, where the file system can lock a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_same(path: Path, descriptor: int) -> bool:
    try:
        there, ours = path.stat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
