"""Packages that a GPU benchmark compares with or checks: there, taken from a folder of wheels, or named as missing."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A package that the project itself does not need."""

    name: str
    pinned: str | None
    """The version that figures are of; None where any will do."""
    rows: str
    """What is left out without it."""


PEERS: Sequence[Peer] = (
    Peer(name="trl", pinned="1.16.0", rows="all rows against TRL"),
    Peer(name="bitsandbytes", pinned=None, rows="the check of 4-bit weights"),
    Peer(name="flash-attn", pinned=None, rows="the check of flash attention"),
)


@dataclass(frozen=True, kw_only=True)
class State:
    """What there is of a peer."""

    peer: Peer
    installed: str | None
    """Its version."""
    wheel: Path | None
    """A wheel of it in the folder that was named."""

    @property
    def usable(self) -> bool:
        """Whether it is installed in the pinned version."""
        return self.installed is not None and self.peer.pinned in (None, self.installed)

    def words(self) -> str:
        """Say what there is and what will be done."""
        name = f"{self.peer.name}{'' if self.peer.pinned is None else ' ' + self.peer.pinned}"
        if self.usable:
            return f"{name}: installed ({self.installed})"
        have = "not installed" if self.installed is None else f"{self.installed} is installed"
        if self.wheel is not None:
            return f"{name}: {have}; {self.wheel.name} is unpacked for this run"
        return f"{name}: {have}, and no wheel of it was named: {self.peer.rows} are left out"


def look(wheels: Path | None) -> list[State]:
    """Return what there is of every peer.

    Args:
        wheels: a folder of wheels.

    Raises:
        SystemExit: there is no such folder, or no wheel in it.
    """
    files: list[Path] = []
    if wheels is not None:
        files = sorted(wheels.glob("*.whl")) if wheels.is_dir() else []
        if not files:
            raise SystemExit(f"--wheels {wheels}: must be a folder with .whl files, as `pip download` makes it.")
    return [State(peer=peer, installed=_installed(peer.name), wheel=_wheel(peer, files)) for peer in PEERS]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _wheel(peer: Peer, files: Sequence[Path]) -> Path | None:
    """Return the wheel of a peer by its file's name, `NAME-VERSION-...whl` (PEP 427)."""
    for path in files:
        name, number = path.name.split("-")[:2]
        if re.sub(r"[-_.]+", "-", name).lower() == peer.name and peer.pinned in (None, number):
            return path
    return None


def unpack(states: Sequence[State], wheels: Path | None, place: Path) -> str | None:
    """Install missing peers from the folder of wheels to `place`, which goes on the path; touch nothing else.

    Returns:
        What went wrong; None where nothing did, or nothing was to be done.
    """
    wanted = [str(state.wheel) for state in states if not state.usable and state.wheel is not None]
    if not wanted or wheels is None:
        return None
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--find-links", str(wheels)]
    done = subprocess.run([*command, "--target", str(place), *wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"pip could not unpack {', '.join(wanted)}: {done.stderr.strip().splitlines()[-1:]}"
    sys.path.insert(0, str(place))
    importlib.invalidate_caches()
    return None
