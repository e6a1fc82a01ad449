"""Where a run runs: its command, the code's state in git, the machine, and environment variables by a list of names."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any

from vlm_lora.backend import Backend
from vlm_lora.config.declaration import declarations
from vlm_lora.config.resolution import SECRET_VARIABLE
from vlm_lora.training.identity.secrets import masked, masked_words

VARIABLES = (
    "ACCELERATE_*",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_DATASETS_CACHE",
    "HF_DATASETS_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "LOCAL_WORLD_SIZE",
    "MKL_*",
    "NCCL_*",
    "OMP_*",
    "PYTHONHASHSEED",
    # Not all: libraries set some of PYTORCH_* themselves, for a while.
    "PYTORCH_*ALLOC_CONF",
    "PYTORCH_ENABLE_*",
    "PYTORCH_JIT*",
    "PYTORCH_TUNABLEOP_*",
    "SLURM_JOB_ID",
    "SLURM_JOB_NUM_NODES",
    "TORCH_*",
    "VLM_LORA_*",
    "WORLD_SIZE",
)
"""The variables that are kept, and no others; adapters declare those of their hardware. Names of secrets never are."""

_PATIENCE = 10
"""Seconds that git may take, on a slow network's disk."""


def command() -> str | None:
    """Return the command of this process without secrets; None for a program that was typed in, not started."""
    program, *words = sys.argv or [""]
    if program in ("", "-", "-c"):
        return None
    name = Path(program).name if Path(program).name == "vlm-lora" else program
    return shlex.join([name, *masked_words(words)])


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the state of a folder's repository, or None where git knows of none.

    Returns:
        `commit`; `dirty`, whether tracked files are otherwise than there; and `changes`, the SHA-256 of how.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    plain = ("--binary", "--no-ext-diff", "--no-textconv", "--no-color")
    changes = _git(folder, "--no-optional-locks", "diff", "HEAD", *plain)
    return {
        "commit": commit.decode().strip(),
        "dirty": None if changes is None else bool(changes),
        "changes": sha256(changes).hexdigest() if changes else None,
    }


def _git(folder: Path, *words: str) -> bytes | None:
    # Variables of a hook that this may run in would name another repository.
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            check=False,
            timeout=_PATIENCE,
            env=surroundings,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def hardware(backend: Backend) -> dict[str, Any]:
    """Return what computes: the backend and its devices in words, the processor, cores, memory in bytes."""
    return {
        "backend": backend.name,
        "device": backend.probe().device,
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that are kept, by name."""
    patterns = (*VARIABLES, *(name for one in declarations().values() for name in one.variables))
    return {
        name: masked(value)
        for name, value in sorted(variables.items())
        if any(fnmatchcase(name, pattern) for pattern in patterns) and not SECRET_VARIABLE.search(name)
    }
