"""A disk that takes no more: one message, the last good checkpoint kept, the torn one gone, and the run goes on later.

The limit is that of a process for each file it writes (setrlimit(2), RLIMIT_FSIZE): every writer meets it as it meets a
full disk, Python's own, torch's in C++ and safetensors' in Rust.
"""

from __future__ import annotations

import errno
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from support.rows import write_uneven_rows
from support.runs import run, script_flags, with_callback
from vlm_lora.cli.main import run_script
from vlm_lora.errors import DataError, DiskError
from vlm_lora.training.guards.room import explained, planned, refusal

FLAGS = {"do_train": True, "max_steps": 3, "save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-2}
ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_uneven_rows(tmp_path_factory.mktemp("rows") / "data", rows=4, validation=2)


@pytest.fixture(scope="module")
def whole(model_folder: Callable[[str], Path], data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "whole"
    run(model_folder("gemma3"), data, output, **FLAGS)
    return output


@contextmanager
def disk_takes(size: int, step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """From the end of this step on, files of more than `size` bytes are cut off there."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fill(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    with monkeypatch.context() as patch:
        with_callback(patch, Fill())
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.2])
def test_a_checkpoint_that_the_disk_does_not_take_is_removed_and_the_one_before_kept(
    share: float,
    whole: Path,
    model_folder: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At none of a file's bytes, within its head, in the adapter and in the optimizer, which is larger."""
    folder = tmp_path / "run"
    budget = int(share * (whole / ADAPTER).stat().st_size)
    with disk_takes(budget, 2, monkeypatch):
        assert run_script(script_flags(model_folder("gemma3"), data, folder, **FLAGS)) == 1
    said = capsys.readouterr().err
    assert said.count("error: ") == 1
    assert "Traceback" not in said
    for part in (str(folder), "bytes are free there, and a checkpoint needs about ", "checkpoint-1 is whole and kept"):
        assert part in said
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-1"]
    run(model_folder("gemma3"), data, folder, **FLAGS, resume_from_checkpoint="auto")
    assert (folder / ADAPTER).read_bytes() == (whole / ADAPTER).read_bytes()


def test_results_that_the_disk_does_not_take_leave_the_checkpoints(
    whole: Path,
    model_folder: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "train_results.json"))

    with monkeypatch.context() as patch:
        patch.setattr("vlm_lora.pipeline.write_results", full)
        assert run_script(script_flags(model_folder("gemma3"), data, folder, **FLAGS)) == 1
    said = capsys.readouterr().err
    assert f"error: {folder}/train_results.json cannot be written: the disk is full. " in said
    assert "checkpoint-3 is whole and kept" in said
    assert "Traceback" not in said
    run(model_folder("gemma3"), data, folder, **FLAGS, resume_from_checkpoint="auto")
    assert (folder / ADAPTER).read_bytes() == (whole / ADAPTER).read_bytes()


def free(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=size)
    monkeypatch.setattr("vlm_lora.training.guards.room.shutil.disk_usage", lambda place: usage)


def test_too_little_room_is_said_before_the_first_step(
    model_folder: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    free(1000, monkeypatch)
    assert run_script(script_flags(model_folder("gemma3"), data, folder, **FLAGS)) == 1
    said = capsys.readouterr().err
    assert f"error: --output_dir {folder}: 1,000 bytes are free there, and this run needs " in said
    assert list(folder.glob("checkpoint-*")) == []


def test_too_little_room_for_a_save_is_said_before_it(
    model_folder: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The size that is said is that of the files, within what is small in them; and room for one is not warned of."""
    folder = tmp_path / "run"

    class Fill(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                free(1000, monkeypatch)

    with_callback(monkeypatch, Fill())
    assert run_script(script_flags(model_folder("gemma3"), data, folder, **FLAGS)) == 1
    said = capsys.readouterr().err
    assert f"error: {folder}/checkpoint-2 is not saved: it needs about " in said
    assert "and 1,000 are free there. checkpoint-1 is whole and kept." in said
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-1"]
    needed = int(said.partition("needs about ")[2].partition(" ")[0].replace(",", ""))
    large = (ADAPTER, "optimizer.pt", "tokenizer.json")
    sizes = {path.name: path.stat().st_size for path in (folder / "checkpoint-1").iterdir()}
    assert sum(sizes.values()) - 100_000 < needed < sum(sizes[name] for name in large) + 120_000
    assert sizes["tokenizer.json"] > 10_000, "a size without it would be told from one with it"


@pytest.mark.parametrize(
    ("strategy", "limit", "count"), [("no", None, 0), ("steps", None, 5), ("steps", 2, 3), ("epoch", None, 4)]
)
def test_the_checkpoints_that_a_run_has_at_once(strategy: str, limit: int | None, count: int) -> None:
    class Holder:
        pass

    holder: Any = Holder()
    holder.args, holder.state, holder.total_limit = Holder(), Holder(), limit
    holder.args.save_strategy = strategy
    holder.state.__dict__ |= {"max_steps": 20, "global_step": 0, "save_steps": 4, "num_train_epochs": 4}
    assert planned(holder) == count


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "quota"),
        (OSError(errno.EROFS, "Read-only file system"), "for reading only"),
        (OSError(errno.EIO, "Input/output error"), "reports an error"),
        (Exception("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), "did not take all"),
        (RuntimeError("basic_ios::clear: iostream error"), "did not take all"),
        (OSError(errno.ENOENT, "No such file"), None),
        (RuntimeError("mat1 and mat2"), None),
    ],
)
def test_what_a_disk_says_is_told_from_other_errors(error: Exception, said: str | None) -> None:
    assert (said or "None") in str(refusal(error))
    outer = ValueError("while saving")
    outer.__cause__ = error
    assert refusal(outer) == refusal(error)


def test_an_error_that_is_a_message_already_stays(tmp_path: Path) -> None:
    """As of an image that the disk does not give."""
    cause = OSError(errno.EIO, "Input/output error")
    with pytest.raises(DataError, match=r"row 3: cannot be read"), explained(lambda: tmp_path):
        raise DataError("row 3: cannot be read") from cause
    with pytest.raises(DiskError, match="reports an error"), explained(lambda: tmp_path):  # the control
        raise cause


def test_memory_to_share_that_cannot_be_made_is_one_message(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with (
            pytest.raises(DiskError, match=r"/dev/shm cannot take .*ulimit -f.*--shm-size"),
            explained(lambda: tmp_path),
        ):
            torch.zeros(10_000).share_memory_()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(RuntimeError, match="another"), explained(lambda: tmp_path):  # the control
        raise RuntimeError("another error (28)")
