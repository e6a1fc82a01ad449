"""Python processes without the start-up: a warm process, which has imported the libraries, forks one per command.

Importing torch, transformers, peft and deepspeed takes about 15 CPU seconds; forking a process that has them a tenth
of one. `programs(python)` returns a folder with `python` and `vlm-lora` that behave as the environment's own: same
words, working folder, variables, streams, signals and exit code, the interpreter's own end included, and
`sys.executable` names them, so what they start is warm too. Each command is a process of its own, forked from one
that has run nothing yet. Not for tests whose point is what happens before or while the libraries are imported.

One warm process serves all workers of a test session. It ends when the last worker has let go of it.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

FOLDER = "VLM_LORA_TESTS_FOLDER"
"""Variable with the folder that all workers of a session share."""

_HERE = Path(__file__).parent
_READ_AT_IMPORT = ("PT_HPU_LAZY_MODE", "PT_HPU_TC_MODE")
_DEVICE = Path(__file__).parents[3] / ".venv" / "hpu"
"""The simulated device: a PYTHONPATH with it is read at import as well."""
_LIMIT = 1800.0
_ours: list[subprocess.Popen[bytes]] = []
_leases: list[socket.socket] = []


def programs(python: Path, variables: Mapping[str, str] | None = None) -> Path:
    """Return the folder with a warm `python` and `vlm-lora` of the environment that `python` belongs to.

    Args:
        python: the environment's interpreter.
        variables: the command's, by default this process's; what torch reads of them when it is imported decides
            which warm process it is.
    """
    variables = os.environ if variables is None else variables
    modes = {name: variables[name] for name in _READ_AT_IMPORT if name in variables}
    if str(_DEVICE) in variables.get("PYTHONPATH", ""):
        modes["PYTHONPATH"] = variables["PYTHONPATH"]
    return _programs(python, tuple(modes.items()))


def warmed(
    words: Sequence[str | Path], variables: Mapping[str, str] | None = None, *, python: Path | None = None
) -> list[str]:
    """Return a command in which this environment's `python` and `vlm-lora` (or those of `python`) are warm."""
    python = Path(sys.executable) if python is None else python
    folder = programs(python, variables)
    stand_ins = {str(python): str(folder / "python"), str(python.with_name("vlm-lora")): str(folder / "vlm-lora")}
    return [stand_ins.get(str(word), str(word)) for word in words]


def let_go() -> None:
    """Let this worker's warm processes end once nobody uses them, and wait until they have."""
    # A loader worker that a failed run left behind holds the lease too: it was forked off with it.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise an error for each
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
    for lease in _leases:
        lease.close()
    _leases.clear()
    for process in _ours:
        process.wait(timeout=_LIMIT)
    _ours.clear()
    _programs.cache_clear()


@cache
def _programs(python: Path, modes: tuple[tuple[str, str], ...]) -> Path:
    # Short: a socket's path may have 107 characters.
    name = "-".join([python.parents[1].name, *(f"{zlib.crc32(value.encode()):x}" for _, value in modes)])
    folder = Path(os.environ[FOLDER]) / "warm" / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _lease(folder / "socket"):
            _start(python, folder, dict(modes))
    return folder


def _start(python: Path, folder: Path, modes: Mapping[str, str]) -> None:
    for name, first in (("python", f"#!{python} -IS"), ("vlm-lora", f"#!{folder}/python")):
        source = (_HERE / "client.py" if name == "python" else python.with_name(name)).read_text(encoding="utf-8")
        text = source.replace('SOCKET = ""', f"SOCKET = {str(folder / 'socket')!r}")
        program = folder / name
        program.write_text("\n".join([first, *text.splitlines()[1:], ""]), encoding="utf-8")
        program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PT_HPU")}
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    (folder / "socket").unlink(missing_ok=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(python), str(_HERE / "server.py"), str(folder / "socket"), str(folder / "python")],
            env={**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": path, **modes},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    _ours.append(process)
    end = time.monotonic() + _LIMIT
    while not _lease(folder / "socket"):
        assert process.poll() is None, (folder / "log").read_text(encoding="utf-8")[-3000:]
        assert time.monotonic() < end, "the warm process does not answer"
        time.sleep(0.05)


def _lease(place: Path) -> bool:
    """Hold the process that listens there; False where none does."""
    lease = socket.socket(socket.AF_UNIX)
    with suppress(FileNotFoundError, ConnectionRefusedError):
        lease.connect(str(place))
        lease.sendall(b"L")
        _leases.append(lease)
        return True
    lease.close()
    return False
