"""`python server.py SOCKET EXECUTABLE`: the warm process. It imports what runs need, then forks one process a request.

A fork leaves the loop and runs its command at the end of this file. It ends as a Python process does, its threads and
exit functions included, up to the taking down of what it shares with the warm process, which would copy all of it.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import importlib.util
import io
import marshal
import os
import runpy
import selectors
import signal
import socket
import sys
import tempfile
import threading
import traceback
import types
from dataclasses import dataclass, field
from pathlib import Path

MODULES = (
    "accelerate.commands.launch",
    "accelerate.utils",
    "datasets",
    "deepspeed",
    "deepspeed.launcher.launch",
    "deepspeed.launcher.runner",
    "optimum.habana.transformers.modeling_utils",
    "optimum.habana.transformers.trainer",
    "peft",
    "safetensors.torch",
    "torch.distributed.elastic.multiprocessing.api",
    "torch.distributed.fsdp",
    "torch.distributed.run",
    "transformers.integrations.deepspeed",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.processing_auto",
    "transformers.trainer",
    "vlm_lora.cli.main",
    "vlm_lora.evaluation.scorer",
    "vlm_lora.launch.elastic",
    "vlm_lora.memory.run",
    "vlm_lora.pipeline",
    "vlm_lora.report.terminal.view",
    "vlm_lora.training.trainer",
    "vlm_lora_torch.backend",
    "vlm_lora_cuda.backend",
    "vlm_lora_habana.backend",
    "vlm_lora_gaudi.backend",
)
"""What runs and launchers import, as far as the environment has it; importing them runs nothing."""

UNHELD = 300.0
"""Seconds within which somebody must take hold of the warm process."""

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)


@dataclass
class Request:
    """A command as the client was given it."""

    argv: list[str]
    folder: str
    variables: dict[str, str]
    ignored: list[int]
    streams: list[int]


@dataclass
class Server:
    """Leases, and the running forks by their client's connection."""

    listener: socket.socket
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    leases: set[socket.socket] = field(default_factory=set)
    held: bool = False
    forks: dict[socket.socket, tuple[int, int]] = field(default_factory=dict)
    """Process and its pidfd."""

    def serve(self) -> Request | None:
        """Return a request in the process that was forked for it; None when nobody holds this process any more."""
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        while self.leases or not self.held:
            ready = self.selector.select(None if self.held else UNHELD)
            if not ready:
                return None  # whoever started this process is gone
            for key, _ in ready:
                if key.fd not in self.selector.get_map():
                    continue  # let go of while another of these was looked at
                request = key.data(key.fileobj)
                if request is not None:
                    return request
        for process, _ in self.forks.values():
            end(process, signal.SIGKILL)
        return None

    def _accept(self, listener: socket.socket) -> Request | None:
        connection, _ = listener.accept()
        head, streams, _, _ = socket.recv_fds(connection, 9, 3)
        if head[:1] == b"L":
            self.leases.add(connection)
            self.held = True
            self.selector.register(connection, selectors.EVENT_READ, self._lease_ended)
            return None
        if len(head) < 9:
            connection.close()
            return None
        argv, folder, variables, ignored = marshal.loads(
            connection.recv(int.from_bytes(head[1:], "big"), socket.MSG_WAITALL)
        )
        request = Request(argv, folder, variables, ignored, streams)
        process = os.fork()
        if process == 0:
            os.setsid()
            self._close_all(connection)
            return request
        for stream in streams:
            os.close(stream)
        descriptor = os.pidfd_open(process)
        self.forks[connection] = process, descriptor
        self.selector.register(connection, selectors.EVENT_READ, self._said)
        self.selector.register(descriptor, selectors.EVENT_READ, lambda _: self._ended(connection))
        return None

    def _lease_ended(self, lease: socket.socket) -> None:
        self.selector.unregister(lease)
        self.leases.discard(lease)
        lease.close()

    def _said(self, connection: socket.socket) -> None:
        """Pass a signal on; a client that is gone was killed, and its process goes with it."""
        try:
            numbers = connection.recv(16)
        except ConnectionResetError:
            numbers = b""
        process, _ = self.forks[connection]
        for number in numbers:
            end(process, number)
        if not numbers:
            end(process, signal.SIGKILL)
            self.selector.unregister(connection)

    def _ended(self, connection: socket.socket) -> None:
        process, descriptor = self.forks.pop(connection)
        self.selector.unregister(descriptor)
        os.close(descriptor)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if connection in {key.fileobj for key in self.selector.get_map().values()}:
            self.selector.unregister(connection)
            try:
                connection.sendall(bytes([code < 0, abs(code)]))
            except BrokenPipeError:
                sys.stderr.write("a client ended before its process\n")
        connection.close()

    def _close_all(self, connection: socket.socket) -> None:
        self.selector.close()
        for other in (self.listener, connection, *self.leases, *self.forks):
            other.close()
        for _, descriptor in self.forks.values():
            os.close(descriptor)


def end(process: int, number: int) -> None:
    """Send a signal to a fork and what is in its process group, as a launcher or a terminal does."""
    try:
        os.killpg(process, number)
    except ProcessLookupError:
        sys.stderr.write(f"{process} ended before signal {number}\n")


def become(request: Request, executable: str) -> None:
    """Make this fork the process that the client's words ask for, up to running them."""
    for place, stream in enumerate(request.streams):
        os.dup2(stream, place)
        os.close(stream)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for ignored in request.ignored:
        signal.signal(ignored, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(request.variables)
    # A rank that looks for the launcher above it would find this process, and end: that is tested with real ones.
    os.environ.pop("VLM_LORA_LAUNCHER", None)
    os.chdir(request.folder)
    tempfile.tempdir = None
    sys.executable = executable
    sys.orig_argv[:] = [executable, *request.argv]
    unbuffered = request.argv[:1] == ["-u"]
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")  # type: ignore
    sys.stdout = sys.__stdout__ = writer(1, "strict", at_once=unbuffered)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = writer(2, "backslashreplace", at_once=True)  # type: ignore[misc]
    places = [place for place in request.variables.get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.path[:] = [*places, *(place for place in sys.path[1:] if place not in places)]


def writer(descriptor: int, errors: str, *, at_once: bool) -> io.TextIOWrapper:
    """Return a standard stream as the interpreter opens it."""
    buffer = io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False))
    return io.TextIOWrapper(buffer, encoding="utf-8", errors=errors, line_buffering=at_once, write_through=at_once)


def run(argv: list[str]) -> None:
    """Run a script, `-m MODULE` or `-c CODE` as the interpreter would."""
    words = list(argv)
    while words[0] in ("-u", "-I", "-S"):
        words.pop(0)
    if words[0] == "-m":
        sys.argv[:] = words[1:]
        sys.path.insert(0, str(Path.cwd()))
        sys.modules.pop(words[1], None)
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        return
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    if words[0] == "-c":
        sys.argv[:] = ["-c", *words[2:]]
        sys.path.insert(0, "")
        code = compile(words[1], "<string>", "exec")
    else:
        sys.argv[:] = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        main.__file__ = words[0]
        code = compile(Path(words[0]).read_bytes(), words[0], "exec")
    exec(code, main.__dict__)


def run_to_the_end(argv: list[str]) -> None:
    """Run a command and end with its exit code, as the interpreter would."""
    code: object = 0
    try:
        run(argv)
    except SystemExit as ended:
        code = ended.code
    except BaseException as error:
        traceback.print_exception(error)
        code = 1
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    if code is not None and not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()
    os._exit((code or 0) & 0xFF)


def prepare() -> None:
    """Import what the environment has of `MODULES`; no test cuts the power, so nothing waits for the disk."""
    os.fsync = lambda fd: None
    for name in MODULES:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that the forks' collections do not copy every page


listener = socket.socket(socket.AF_UNIX)
prepare()
listener.bind(sys.argv[1])
listener.listen(64)
asked = Server(listener).serve()
if asked is not None:
    become(asked, sys.argv[2])
    run_to_the_end(asked.argv)
