"""`vlm-lora launch` is killed: what it started ends with it, by each launcher and in its several generations."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from support.killed_launchers import left_of

VLM_LORA = Path(sys.executable).with_name("vlm-lora")


@pytest.mark.parametrize(
    ("launcher", "inner"),
    [("", False), ("--use_accelerate", False), ("--use_deepspeed", False), ("", True), ("--use_deepspeed", True)],
)
def test_nothing_outlives_a_launcher_that_is_killed(launcher: str, inner: bool, tmp_path: Path) -> None:
    """The outermost one, or the one that it started; nor does a rank that is stopped."""
    words: list[str | Path] = [
        VLM_LORA,
        "launch",
        "--backend",
        "cpu",
        *([launcher] if launcher else []),
        "--world_size",
        "2",
    ]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    variables = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    assert left_of(words, tmp_path, variables, inner=inner) == []
