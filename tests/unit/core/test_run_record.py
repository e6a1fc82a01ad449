"""What is on a folder's record, and that nothing else there is counted, removed or written over."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState

from support.sealed import ONE
from vlm_lora.config.whole_files import read_json
from vlm_lora.errors import ConfigError
from vlm_lora.report.checkpoints import describe_checkpoints
from vlm_lora.training.checkpoints.choosing import find_checkpoint, is_whole
from vlm_lora.training.checkpoints.rotation import NothingInTheWay, begin_saving, end_saving, rotate, surplus
from vlm_lora.training.checkpoints.run_record import RunRecord, note_checkpoint, note_end, read_record, write_record
from vlm_lora.training.checkpoints.sealing import begin_checkpoint, seal_checkpoint
from vlm_lora.training.outputs import claim_output_dir, prepare_for_results, write_results

WEIGHTS = "adapter_model.safetensors"


def checkpoint(folder: Path, step: int, *, whole: bool = True, listed: bool = True) -> Path:
    """Make one as a run does; of an earlier version where it is on no list."""
    path = folder / f"checkpoint-{step}"
    if listed:
        note_checkpoint(folder, path.name)
        begin_checkpoint(path, ONE)
    path.mkdir(exist_ok=True)
    (path / WEIGHTS).write_bytes(b"weights")
    if whole:
        (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        if listed:
            seal_checkpoint(path, ONE)
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("checkpoint-*")}


@pytest.mark.parametrize(
    ("limit", "best", "gone"),
    [
        (1, None, "abc"),
        (1, "a", "bc"),
        (1, "d", "abc"),
        (2, "a", "bc"),
        (3, "b", "a"),
        (4, None, ""),
        (9, None, ""),
        (2, "elsewhere", "ab"),
    ],
)
def test_the_newest_and_the_best_stay(limit: int, best: str | None, gone: str) -> None:
    assert surplus("abcd", limit, best) == list(gone)


def test_what_is_on_no_list_is_neither_counted_nor_removed(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, 100, listed=False)
    (tmp_path / "checkpoint-best").mkdir()
    rotate(tmp_path, 2, best=None)
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-3", "checkpoint-100", "checkpoint-best"}
    assert read_record(tmp_path).checkpoints == ("checkpoint-2", "checkpoint-3")
    for none in (None, 0, -1):
        rotate(tmp_path, none, best=None)
    assert len(names(tmp_path)) == 4


def test_the_list_is_in_the_order_of_saving(tmp_path: Path) -> None:
    """After going on from checkpoint-2 the new checkpoint-3 is newer than the checkpoint-4 that was there."""
    for step in (2, 4, 3):
        checkpoint(tmp_path, step)
    assert find_checkpoint(tmp_path, True) == str(tmp_path / "checkpoint-3")
    rotate(tmp_path, 1, best=None)
    assert names(tmp_path) == {"checkpoint-3"}


def test_damaged_ones_do_not_count(tmp_path: Path) -> None:
    """Files of another size, which is seen without reading them, and a manifest that is gone."""
    for step in (1, 2, 3, 4, 5):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-3" / WEIGHTS).write_bytes(b"weight")
    (tmp_path / "checkpoint-4" / "MANIFEST.json").unlink()
    rotate(tmp_path, 3, best=None)
    assert names(tmp_path) == {"checkpoint-1", "checkpoint-2", "checkpoint-5"}
    (tmp_path / "checkpoint-2" / WEIGHTS).write_bytes(b"weight")
    checkpoint(tmp_path, 6, whole=False)
    said = describe_checkpoints(tmp_path)
    assert "damaged: adapter_model.safetensors: cut off (6 bytes of 7)" in said
    assert "incomplete: saving was interrupted" in said


def test_half_written_ones_do_not_count_and_go(tmp_path: Path) -> None:
    for step, whole in ((1, True), (2, True), (3, False), (4, True)):
        checkpoint(tmp_path, step, whole=whole)
    rotate(tmp_path, 2, best=None)
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-4"}
    checkpoint(tmp_path, 5, whole=False)
    rotate(tmp_path, 1, best=None)
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-4", "checkpoint-5"}, (
        "the newest is not whole: all are needed"
    )


def test_a_link_goes_and_its_target_stays(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for step in (1, 2):
        checkpoint(tmp_path, step)
    shutil.move(tmp_path / "checkpoint-1", elsewhere)
    (tmp_path / "checkpoint-1").symlink_to(elsewhere / "checkpoint-1")
    rotate(tmp_path, 1, best=None)
    assert names(tmp_path) == {"checkpoint-2"}
    assert (elsewhere / "checkpoint-1" / WEIGHTS).exists()


def test_what_cannot_be_removed_is_said_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        checkpoint(tmp_path, step)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with caplog.at_level(logging.WARNING):
        rotate(tmp_path, 1, best=None)
    assert caplog.messages == [f"{tmp_path / 'checkpoint-1'} cannot be removed: Permission denied."]
    assert read_record(tmp_path).checkpoints == ("checkpoint-1", "checkpoint-2"), "it is tried again"
    assert find_checkpoint(tmp_path, True) == str(tmp_path / "checkpoint-2")


def trainer_at(folder: Path, step: int) -> SimpleNamespace:
    return SimpleNamespace(
        args=SimpleNamespace(**{**vars(ONE), "output_dir": str(folder)}),
        state=SimpleNamespace(global_step=step, best_model_checkpoint=None),
        accelerator=SimpleNamespace(wait_for_everyone=lambda: None),
    )


def test_the_name_is_on_the_list_before_the_folder_is_written(tmp_path: Path) -> None:
    """A kill inside leaves a checkpoint that is known as this run's; saving it again begins with an empty folder."""
    folder = tmp_path / "out"

    def save_and_die() -> None:
        begin_saving(trainer_at(folder, 3), folder / "checkpoint-3")
        assert json.loads((folder / "run_files.json").read_text())["checkpoints"] == ["checkpoint-3"]
        (folder / "checkpoint-3" / "rng_state_7.pth").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_and_die()
    begin_saving(trainer_at(folder, 3), folder / "checkpoint-3")
    assert [path.name for path in (folder / "checkpoint-3").iterdir()] == ["MANIFEST.json"]
    assert not is_whole(folder / "checkpoint-3"), "its manifest says that it is unfinished"


def test_older_ones_go_once_the_new_one_is_whole(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint(tmp_path, step)
    new, trainer = tmp_path / "checkpoint-3", trainer_at(tmp_path, 3)
    begin_saving(trainer, new)
    (new / WEIGHTS).write_bytes(b"weights")
    (new / "trainer_state.json").write_text('{"global_step": 3}')
    end = end_saving(trainer, new, 1)
    assert names(tmp_path) == {"checkpoint-1", "checkpoint-2", "checkpoint-3"}
    assert not is_whole(new)
    end()
    assert names(tmp_path) == {"checkpoint-3"}
    assert is_whole(new)


def test_a_checkpoint_that_appears_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    theirs = checkpoint(tmp_path, 3, listed=False)
    with pytest.raises(ConfigError, match=r"checkpoint-3: no run on record"):
        begin_saving(trainer_at(tmp_path, 3), theirs)
    assert (theirs / WEIGHTS).exists()
    # transformers' --enable_jit_checkpoint makes the folder itself.
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "checkpoint-is-incomplete.txt").touch()
    begin_saving(trainer_at(tmp_path, 4), tmp_path / "checkpoint-4")
    assert read_record(tmp_path).checkpoints == ("checkpoint-4",)


@pytest.mark.parametrize(("step", "refused"), [(2, True), (3, True), (4, True), (5, False), (1, False)])
def test_another_runs_checkpoint_in_the_way_is_found_before_the_first_step(
    step: int, refused: bool, tmp_path: Path
) -> None:
    """Going on from step 1 to step 4."""
    checkpoint(tmp_path, 1)
    if step > 1:
        checkpoint(tmp_path, step, listed=False)
    state, arguments = TrainerState(global_step=1, max_steps=4), SimpleNamespace(output_dir=str(tmp_path))
    begin = NothingInTheWay().on_train_begin
    if refused:
        with pytest.raises(ConfigError, match=f"checkpoint-{step}: no run on record"):
            begin(arguments, state, TrainerControl())
        note_checkpoint(tmp_path, f"checkpoint-{step}")
    begin(arguments, state, TrainerControl())


def test_resuming_chooses_among_the_runs_own(tmp_path: Path) -> None:
    own = checkpoint(tmp_path, 2)
    theirs = checkpoint(tmp_path, 100, listed=False)
    assert find_checkpoint(tmp_path, "true") == str(own)
    assert find_checkpoint(tmp_path, str(theirs)) == str(theirs)
    assert "checkpoint-100" in describe_checkpoints(tmp_path).splitlines()[2]
    assert describe_checkpoints(tmp_path).endswith("; on no list in run_files.json")
    shutil.rmtree(own)
    with pytest.raises(ConfigError, match=r"no run on record in .* --resume_from_checkpoint .*checkpoint-100\."):
        find_checkpoint(tmp_path, "true")


def test_a_folder_of_an_earlier_version_adopts_what_is_gone_on_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3):
        checkpoint(tmp_path, step, listed=False)
    (tmp_path / WEIGHTS).touch()
    prepare_for_results(tmp_path)
    assert find_checkpoint(tmp_path, "true") == str(tmp_path / "checkpoint-3"), "measuring begins no list"
    with caplog.at_level(logging.WARNING):
        claim_output_dir(tmp_path, overwrite=False, checkpoint=str(tmp_path / "checkpoint-3"))
    assert f"{tmp_path / 'checkpoint-3'} was on no list" in caplog.text
    assert read_record(tmp_path).checkpoints == ("checkpoint-3",)
    note_end(tmp_path)
    assert WEIGHTS in read_record(tmp_path).files
    caplog.clear()
    claim_output_dir(tmp_path, overwrite=False, checkpoint=str(tmp_path / "checkpoint-3"))
    assert caplog.messages == []


def test_overwriting_removes_what_is_on_record_alone(tmp_path: Path) -> None:
    claim_output_dir(tmp_path, overwrite=False, checkpoint=None)
    checkpoint(tmp_path, 1)
    written = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "all_results.json")
    theirs = ("my_results.json", "predictions.csv", "vocab.txt")
    for name in written:
        (tmp_path / name).write_text("{}")
    (tmp_path / ".all_results.json.abcdefgh.partial").touch()
    note_end(tmp_path)
    assert read_record(tmp_path) == RunRecord(
        checkpoints=("checkpoint-1",), files=tuple(sorted(written)), sealed=("checkpoint-1",)
    )
    checkpoint(tmp_path, 50, listed=False)
    for name in theirs:
        (tmp_path / name).write_text("theirs")
    for name in ("checkpoint-best", "runs"):
        (tmp_path / name).mkdir()
    claim_output_dir(tmp_path, overwrite=True, checkpoint=None)
    assert {path.name for path in tmp_path.iterdir()} == {
        *theirs, "run_files.json", "checkpoint-50", "checkpoint-best", "runs"
    }  # fmt: skip
    assert "vocab.txt" not in read_record(tmp_path).files


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name", [WEIGHTS, "adapter_config.json", "config.json", "model-00001-of-00002.safetensors", "pytorch_model.bin"]
)
def test_weights_that_no_run_wrote_are_kept(name: str, overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_text("theirs")
    with pytest.raises(ConfigError, match=f"holds {name}, which no run on record there"):
        claim_output_dir(tmp_path, overwrite=overwrite, checkpoint=None)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (tmp_path / name).unlink()
    claim_output_dir(tmp_path, overwrite=overwrite, checkpoint=None)


def test_a_run_that_failed_or_was_killed_early_may_start_again(tmp_path: Path) -> None:
    claim_output_dir(tmp_path, overwrite=False, checkpoint=None)
    for name in ("run_config.yaml", "data_report.json", "README.md"):
        (tmp_path / name).touch()
    checkpoint(tmp_path, 1, whole=False)
    claim_output_dir(tmp_path, overwrite=False, checkpoint=None)
    (tmp_path / "run_files.json").unlink()
    (tmp_path / "README.md").write_text("library_name: peft")
    with pytest.raises(ConfigError, match=r"holds README\.md, which no run on record"):
        claim_output_dir(tmp_path, overwrite=True, checkpoint=None)


@pytest.mark.parametrize("name", ["all_results.json", "predictions.jsonl", "README.md", "run_files.json"])
def test_folders_called_like_results_are_kept(name: str, tmp_path: Path) -> None:
    """The run would end at them after all its steps."""
    (tmp_path / name).mkdir()
    for resumed in (None, str(tmp_path / "checkpoint-1")):
        with pytest.raises(ConfigError, match=f"holds a folder called {name}"):
            claim_output_dir(tmp_path, overwrite=True, checkpoint=resumed)


def test_a_record_cannot_point_outside(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "checkpoint-1").mkdir(parents=True)
    folder = tmp_path / "out"
    folder.mkdir()
    listed = {
        "checkpoints": ["../outside/checkpoint-1", "checkpoint-best", 3],
        "files": ["../outside", 7, "..", "*", "my.txt"],
    }
    (folder / "run_files.json").write_text(json.dumps(listed))
    assert read_record(folder) == RunRecord(checkpoints=())


@pytest.mark.parametrize("content", ["", '{"epoch": 1.0, "tra', "[]", "\ud800"])
def test_broken_results_are_set_aside(content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    resumed = str(checkpoint(tmp_path, 1))
    for number in (1, 2):
        (tmp_path / "all_results.json").write_bytes(content.encode("utf-8", "surrogatepass"))
        with caplog.at_level(logging.WARNING):
            claim_output_dir(tmp_path, overwrite=False, checkpoint=resumed)
        assert len([text for text in caplog.messages if "all_results.json is no whole JSON object" in text]) == number
    assert {path.name for path in tmp_path.glob("*.broken*")} == {
        "all_results.json.broken",
        "all_results.json.broken.2",
    }
    write_results(tmp_path, "train", {"train_loss": 1.0})
    assert read_json(tmp_path / "all_results.json") == {"train_loss": 1.0}


def test_a_broken_record_is_set_aside_too(tmp_path: Path) -> None:
    checkpoint(tmp_path, 1)
    (tmp_path / "run_files.json").write_text("{")
    assert read_record(tmp_path) == RunRecord()
    assert (tmp_path / "run_files.json.broken").read_text() == "{"
    write_record(tmp_path, RunRecord(checkpoints=("checkpoint-1", "checkpoint-7")))
    assert read_record(tmp_path).checkpoints == ("checkpoint-1",), "what is gone counts no more"
