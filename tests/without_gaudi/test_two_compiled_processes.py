"""Compiled training on two processes: the engine inside is found and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from support.rows import write_uneven_rows
from support.runs import TORCHRUN, run_processes, script_flags


def test_two_compiled_processes(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """accelerate compiles around DistributedDataParallel: what is inside counts as the engine."""
    data = write_uneven_rows(tmp_path / "data", rows=4)
    words = script_flags(
        model_folder("llava"),
        data,
        tmp_path / "out",
        do_train=True,
        max_steps=1,
        per_device_train_batch_size=2,
        ddp_backend="gloo",
        torch_compile=True,
        torch_compile_backend="eager",
        log_level="info",
    )
    said = run_processes([*TORCHRUN, *words])
    assert "Engine: DistributedDataParallel, compiled, on 2 processes." in said
