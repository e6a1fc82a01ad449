"""Builds `device.cpp` once per torch version, loads it, and speaks to its C interface."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import subprocess
from collections import namedtuple
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("device.cpp")

Statistics = namedtuple(
    "Statistics",
    "in_use peak items copies_to_host copies_to_device operators graphs_run graphs_compiled dynamic_shapes",
)
"""Bytes in use and at the peak; then counts since the process began."""


@functools.cache
def library() -> ctypes.CDLL:
    """Return the loaded library; the first caller per torch version and source compiles it (about 10 s)."""
    path = _library_path()
    if not path.exists():
        _compile(path)
    torch.ops.load_library(str(path))
    loaded = ctypes.CDLL(str(path))
    loaded.hpu_simulator_set_lazy(int(os.environ.get("PT_HPU_LAZY_MODE", "1") != "0"))
    return loaded


def statistics() -> Statistics:
    """Return the device's figures."""
    values = (ctypes.c_int64 * len(Statistics._fields))()
    library().hpu_simulator_read(values)
    return Statistics(*values)


def mark_step() -> None:
    """Cut the graph that was recorded and run it."""
    library().hpu_simulator_mark_step()


def reset_peak() -> None:
    """Start the peak anew from what is in use."""
    library().hpu_simulator_reset_peak()


def _library_path() -> Path:
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return cache / "hpu_simulator" / f"torch-{torch.__version__}-{digest}" / "libhpu_simulator.so"


def _compile(path: Path) -> None:
    """Compile under a lock, so that several processes build it once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return
        root = Path(torch.__file__).parent
        partial = path.with_suffix(".partial")
        command = [
            *("g++", "-std=c++20", "-O1", "-fPIC", "-shared", str(SOURCE), "-o", str(partial)),
            *(f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"),
            *(f"-L{root / 'lib'}", "-Wl,--no-as-needed", "-lc10", "-ltorch_cpu", "-ltorch"),
            f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"The simulated hpu does not compile:\n{' '.join(command)}\n{done.stderr}")
        partial.rename(path)
