"""A loader worker or a rank that is stopped or killed while a run is under way: one message, exit code 1, none left."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import get_worker_info

from support.killed_launchers import is_running
from support.process import find_rank
from support.rows import write_uneven_rows
from support.runs import script_flags
from vlm_lora.batching.collator import Collator
from vlm_lora.cli.main import run_script

VLM_LORA = Path(sys.executable).with_name("vlm-lora")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_uneven_rows(tmp_path_factory.mktemp("rows") / "data", rows=4, validation=4)


@pytest.mark.parametrize(
    ("verb", "number", "said"),
    [
        ("do_train", signal.SIGSTOP, r"within --dataloader_timeout 20 s: pid \d+ is stopped, .*train\.jsonl row \d"),
        ("do_eval", signal.SIGSTOP, r"within --dataloader_timeout 20 s: pid \d+ is stopped, .*validation\.jsonl row 0"),
        ("do_train", signal.SIGKILL, r"worker with pid \d+ was ended by a signal \(Killed\); .*train\.jsonl row \d"),
    ],
)
def test_a_worker_that_delivers_nothing_ends_the_run(
    verb: str,
    number: signal.Signals,
    said: str,
    data: Path,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Collation happens in the worker."""
    collate = Collator.__call__

    def hit(collator: Collator, rows: Any) -> Any:
        if get_worker_info() is not None:
            os.kill(os.getpid(), number)
        return collate(collator, rows)

    monkeypatch.setattr(Collator, "__call__", hit)
    own = {verb: True, "dataloader_num_workers": 1, "dataloader_timeout": 20, "skip_check": True, "max_steps": 2}
    assert run_script(script_flags(model_folder("gemma3"), data, tmp_path / "out", **own)) == 1
    text = capsys.readouterr().err
    assert re.search(said, text), text
    assert text.count("error: ") == 1
    assert "Traceback" not in text
    assert multiprocessing.active_children() == []


def test_a_stopped_rank_ends_the_run(data: Path, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """torchrun gives what is left 30 seconds, here one, before it kills it."""
    own = {"do_train": True, "max_steps": 100_000, "logging_steps": 100, "log_level": "info", "ddp_timeout": 30}
    words = script_flags(model_folder("gemma3"), data, tmp_path / "out", **own)
    process = subprocess.Popen(
        [str(VLM_LORA), "launch", "--backend", "cpu", "--world_size", "2", "train", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    late = threading.Timer(400, process.kill)
    late.start()
    lines: list[str] = []
    ranks: dict[int, int] = {}
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if "Gradient audit" in line:
                ranks = {rank: find_rank(rank, tmp_path / "out") for rank in (0, 1)}
                os.kill(ranks[1], signal.SIGSTOP)
        code = process.wait(timeout=60)
    late.cancel()
    text = "".join(lines)
    assert code == 1, text
    said = (
        rf"Rank 1 \(pid {ranks[1]}, which is stopped\) did not answer within --ddp_timeout 30 s; rank 0 waited in vain"
    )
    assert re.search(rf"The run ended with exit code 1\. error: {said}", lines[-1]), text
    assert "Traceback" not in text
    assert [pid for pid in ranks.values() if is_running(pid)] == []
