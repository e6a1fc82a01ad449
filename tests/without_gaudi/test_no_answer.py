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
from vlm_lora.training.guards.folder_lock import LOCK

VLM_LORA = Path(sys.executable).with_name("vlm-lora")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_uneven_rows(tmp_path_factory.mktemp("rows") / "data", rows=4, validation=4)


@pytest.mark.parametrize(
    ("verb", "number", "said"),
    [
        ("do_train", signal.SIGSTOP, r"within --dataloader_timeout 10 s: pid \d+ is stopped, .*train\.jsonl row \d"),
        ("do_eval", signal.SIGSTOP, r"within --dataloader_timeout 10 s: pid \d+ is stopped, .*validation\.jsonl row 0"),
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
    own = {verb: True, "dataloader_num_workers": 1, "dataloader_timeout": 10, "skip_check": True, "max_steps": 2}
    assert run_script(script_flags(model_folder("gemma3"), data, tmp_path / "out", **own)) == 1
    text = capsys.readouterr().err
    assert re.search(said, text), text
    assert text.count("error: ") == 1
    assert "Traceback" not in text
    assert multiprocessing.active_children() == []


def launched(data: Path, model: Path, output: Path, hurt: Callable[[int, int], None], **own: object) -> tuple[int, str]:
    """Train on two ranks, hurt one once they train, and return exit code and stderr; no rank is left.

    torchrun gives what is left 30 seconds, here one, before it kills it.
    """
    flags = {"do_train": True, "max_steps": 100_000, "logging_steps": 100, "log_level": "info", **own}
    process = subprocess.Popen(
        [
            str(VLM_LORA),
            "launch",
            "--backend",
            "cpu",
            "--world_size",
            "2",
            "train",
            *script_flags(model, data, output, **flags),
        ],
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
                ranks = {rank: find_rank(rank, output) for rank in (0, 1)}
                hurt(ranks[0], ranks[1])
        code = process.wait(timeout=60)
    late.cancel()
    assert [pid for pid in ranks.values() if is_running(pid)] == []
    return code, "".join(lines).replace(f"pid {ranks[1]}", "pid RANK1").replace(f"pid {ranks[0]}", "pid RANK0")


def stop_second(first: int, second: int) -> None:
    os.kill(second, signal.SIGSTOP)


def test_a_stopped_rank_ends_the_run(data: Path, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    code, text = launched(data, model_folder("gemma3"), tmp_path / "out", stop_second, ddp_timeout=30)
    assert code == 1, text
    said = r"Rank 1 \(pid RANK1, which is stopped\) did not answer within --ddp_timeout 30 s; rank 0 waited in vain"
    assert re.search(rf"The run ended with exit code 1\. error: {said}", text.splitlines()[-1]), text
    assert "Traceback" not in text


def test_a_training_that_stands_still_shows_what_it_does_and_names_the_stopped_rank(
    data: Path, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """The output folder is free again."""
    code, text = launched(data, model_folder("gemma3"), tmp_path / "out", stop_second, stall_timeout=10)
    assert code == 76, text
    said = r"The training stood still for 10 seconds .*: rank 1 \(pid RANK1 on \S+; T, stopped.*\) does not answer"
    assert re.search(rf"The run ended with exit code 76\. error: {said}", text.splitlines()[-1]), text
    assert "Rank 0 (pid RANK0) was doing this:" in text
    assert re.search(r'File ".*trainer\.py", line \d+ in train', text), "its main thread is shown"
    assert "Rank 1 (pid RANK1) was doing" not in text
    assert not (tmp_path / "out" / LOCK).exists()


STANDS = """
import os, sys, time
from transformers import TrainerCallback
from vlm_lora.training import trainer
from vlm_lora.cli.main import run_script
from vlm_lora.training.guards.folder_lock import LOCK

class Sleep(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            time.sleep(300)

build = trainer.build_trainer
def with_sleep(*args, **kwargs):
    built = build(*args, **kwargs)
    built.add_callback(Sleep())
    return built
trainer.build_trainer = with_sleep
sys.exit(run_script(sys.argv[1:]))
"""


def test_a_training_of_one_process_that_stands_still_ends_and_shows_where(
    data: Path, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    words = script_flags(
        model_folder("gemma3"), data, tmp_path / "out", do_train=True, max_steps=5, stall_timeout=4, save_steps=1
    )
    done = subprocess.run(
        [sys.executable, "-c", STANDS, *words], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 76, done.stderr
    assert "in on_step_begin" in done.stderr
    assert re.search(
        r"error: The training stood still for 4 seconds .*: process pid \d+ on \S+ stands in step 3\. ", done.stderr
    )
    assert not (tmp_path / "out" / LOCK).exists()
