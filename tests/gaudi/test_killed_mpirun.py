"""The launcher is killed while mpirun runs the ranks: neither mpirun nor a rank outlives it."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.killed_launchers import left_of
from support.stacks import GAUDI, SPAWN, environment


@pytest.mark.parametrize("inner", [False, True])
def test_nothing_outlives_a_launcher_that_is_killed(inner: bool, tmp_path: Path) -> None:
    """The one that started mpirun, or mpirun itself; nor does a rank that is stopped."""
    words: list[str | Path] = [GAUDI, SPAWN, "--world_size", "2", "--use_mpi"]
    assert left_of(words, tmp_path, environment(GAUDI, {"PT_HPU_LAZY_MODE": "1"}), inner=inner) == []
