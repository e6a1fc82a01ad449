"""The launcher is killed while mpirun runs the ranks: neither mpirun nor a rank outlives it."""

from __future__ import annotations

from pathlib import Path

from support.killed_launchers import left_of
from support.stacks import GAUDI, SPAWN, environment


def test_nothing_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    """Nor a rank that is stopped; killed itself, mpirun leaves its ranks behind."""
    words: list[str | Path] = [GAUDI, SPAWN, "--world_size", "2", "--use_mpi"]
    assert left_of(words, tmp_path, environment(GAUDI, {"PT_HPU_LAZY_MODE": "1"})) == []
