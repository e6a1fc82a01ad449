"""Which checkpoint a run goes on from, and what it does about one whose saving was cut short."""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from vlm_lora.errors import ConfigError
from vlm_lora.training.checkpoints.choosing import find_checkpoint
from vlm_lora.training.checkpoints.run_record import RunRecord, write_record
from vlm_lora.training.outputs import claim_output_dir
from vlm_lora.training.planning import shared_values


def checkpoint(folder: Path, step: int, state: str | None = '{"global_step": 1}') -> str:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    return str(path)


@pytest.mark.parametrize("resume", [None, False, "", "false"])
def test_afresh(resume: str | bool | None, tmp_path: Path) -> None:
    checkpoint(tmp_path, 5)
    assert find_checkpoint(tmp_path, resume) is None


def test_the_newest_by_number(tmp_path: Path) -> None:
    checkpoint(tmp_path, 9)
    newest = checkpoint(tmp_path, 10)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-11").touch()
    assert find_checkpoint(tmp_path, True) == find_checkpoint(tmp_path, "true") == newest


@pytest.mark.parametrize("state", [None, "", '{"epoch": 1.0, "log_hist', "[]"])
def test_one_that_was_cut_short_is_passed_over(
    state: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, cut = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4, state)
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(tmp_path, True) == whole
    assert caplog.messages == [f"{cut}: saving was interrupted; going on from {whole} instead."]
    with pytest.raises(ConfigError, match=r"checkpoint-4: MANIFEST\.json, which is written last"):
        find_checkpoint(tmp_path, cut)


def test_nothing_to_go_on_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        for asked in (True, "true", "auto"):
            assert find_checkpoint(folder, asked) is None, "the first start of a command that is always the same"
    with pytest.raises(ConfigError, match="no such folder"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-7"))
    cut = checkpoint(tmp_path, 4, None)
    assert find_checkpoint(tmp_path, True) is None
    assert caplog.messages == [f"{cut}: saving was interrupted; starting from the beginning instead."]
    claim_output_dir(tmp_path, overwrite=False, checkpoint=None)
    checkpoint(tmp_path, 5)
    with pytest.raises(ConfigError, match=r"already holds a run \(checkpoint-5\)"):
        claim_output_dir(tmp_path, overwrite=False, checkpoint=None)


def test_machines_may_remove_an_earlier_run_from_one_folder_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever one of them is about to remove, the other has removed."""
    remove = shutil.rmtree

    def later(folder: Path) -> None:
        remove(folder)
        remove(folder)  # raises FileNotFoundError

    for step in (1, 2):
        checkpoint(tmp_path, step)
    (tmp_path / "all_results.json").write_text("{}", encoding="utf-8")
    record = RunRecord(checkpoints=("checkpoint-1", "checkpoint-2"), files=("all_results.json",))
    write_record(tmp_path, record)
    monkeypatch.setattr(shutil, "rmtree", later)
    claim_output_dir(tmp_path, overwrite=True, checkpoint=None)
    assert [path.name for path in tmp_path.iterdir()] == ["run_files.json"]


def test_machines_may_share_the_file_of_what_each_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine writes and renames its file between this one's writing and renaming."""
    path = tmp_path / "shape_plan.json"
    synchronise = os.fsync
    others: list[list[int]] = []

    class FirstOfItsMachine:
        local_process_index = 0

        @staticmethod
        def main_process_first(desc: str) -> AbstractContextManager[None]:
            return nullcontext()

    def meanwhile(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", synchronise)
        others.append(shared_values(path, FirstOfItsMachine(), lambda: [2]))
        synchronise(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    assert shared_values(path, FirstOfItsMachine(), lambda: [1]) == [1]
    assert others == [[2]]
    assert [file.name for file in tmp_path.iterdir()] == ["shape_plan.json"]
