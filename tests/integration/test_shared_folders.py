"""A run in a folder that holds more than its own: what is not the run's stays, whatever the limit or the flag."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from support.rows import write_uneven_rows
from support.runs import run, script_flags
from vlm_lora.cli.main import run_script
from vlm_lora.config.whole_files import replacing, write_json
from vlm_lora.training.checkpoints import valid_state

ADAPTER = "adapter_model.safetensors"
FLAGS: dict[str, object] = {
    "do_train": True,
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 2,
    "learning_rate": 1e-2,
}
THEIRS = {
    "my_results.json": '{"theirs": 1}',
    "checkpoint-best/adapter_model.safetensors": "theirs",
    "checkpoint-100/adapter_model.safetensors": "theirs",
    "checkpoint-old.tar": "theirs",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_uneven_rows(tmp_path / "data", rows=6, validation=2)


def put(output: Path) -> None:
    for name, text in THEIRS.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text(text)
    # The other run is over: its checkpoint is whole.
    (output / "checkpoint-100" / "trainer_state.json").write_text('{"global_step": 100}')


def theirs_are_there(output: Path) -> bool:
    return all((output / name).read_text() == text for name, text in THEIRS.items())


def own(output: Path) -> list[str]:
    listed: list[str] = json.loads((output / "run_files.json").read_text())["checkpoints"]
    assert all((output / name).is_dir() for name in listed)
    return listed


def refusal(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    capsys.readouterr()
    assert run_script(words) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_what_is_not_the_runs_is_kept(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rotation, going on, going back and overwriting, in one folder that others use, too."""
    model, output = model_folder("gemma3"), tmp_path / "out"
    run(model, data, output, **FLAGS)
    put(output)
    assert own(output) == ["checkpoint-3", "checkpoint-4"]
    # The newest by number is the other run's.
    run(model, data, output, **{**FLAGS, "max_steps": 5}, resume_from_checkpoint="true")
    assert own(output) == ["checkpoint-4", "checkpoint-5"]
    # Back to step 4: checkpoint-5 is this run's too, and the newest is the last one saved.
    back = {**FLAGS, "max_steps": 6, "save_steps": 6, "resume_from_checkpoint": output / "checkpoint-4"}
    run(model, data, output, **back)
    assert own(output) == ["checkpoint-5", "checkpoint-6"]
    assert theirs_are_there(output)

    (output / "checkpoint-7").mkdir()
    (output / "checkpoint-7" / "theirs").touch()
    said = refusal(
        capsys, script_flags(model, data, output, **{**FLAGS, "max_steps": 8}, resume_from_checkpoint="true")
    )
    assert f"{output / 'checkpoint-7'}: no run on record in this folder (run_files.json) saved this" in said
    assert own(output) == ["checkpoint-5", "checkpoint-6"]
    shutil.rmtree(output / "checkpoint-7")

    assert "--overwrite_output_dir to write over" in refusal(capsys, script_flags(model, data, output, **FLAGS))
    results = run(model, data, output, **{**FLAGS, "max_steps": 1}, overwrite_output_dir=True)
    assert own(output) == ["checkpoint-1"]
    assert theirs_are_there(output)
    assert results["epoch"] == 1.0

    (output / "run_files.json").unlink()
    said = refusal(capsys, script_flags(model, data, output, **FLAGS, overwrite_output_dir=True))
    assert "which no run on record there (run_files.json) wrote" in said
    assert (output / ADAPTER).is_file()


def test_with_limit_1_the_best_and_the_newest_remain(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    """Of a loss that falls, the largest is the first: it is called the best here."""
    output = tmp_path / "out"
    best = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "greater_is_better": True}
    put(output)
    shutil.rmtree(output / "checkpoint-100")
    run(model_folder("gemma3"), data, output, **{**FLAGS, **best, "max_steps": 3, "save_total_limit": 1})
    assert own(output) == ["checkpoint-1", "checkpoint-3"]
    assert (output / "checkpoint-best" / ADAPTER).read_text() == "theirs"
    assert (output / ADAPTER).read_bytes() == (output / "checkpoint-1" / ADAPTER).read_bytes()


def test_overwriting_full_weights_leaves_no_shard_of_them(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run(model_folder("gemma3"), data, output, do_train=True, max_steps=1, peft_method="none")
    (output / "model.safetensors").rename(output / "model-00001-of-00001.safetensors")
    listed = json.loads((output / "run_files.json").read_text())
    listed["files"].append("model-00001-of-00001.safetensors")
    (output / "run_files.json").write_text(json.dumps(listed))
    run(model_folder("gemma3"), data, output, do_train=True, max_steps=1, overwrite_output_dir=True)
    names = {path.name for path in output.iterdir()}
    assert ADAPTER in names
    assert not {name for name in names if name.startswith("model") or name == "config.json"}
    assert set(json.loads((output / "run_files.json").read_text())["files"]) == names - {"run_files.json"}


def test_killed_while_the_final_state_is_written(
    model_folder: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The state in the output folder appears whole or not at all; broken results of a kill do not block a restart."""
    model, output = model_folder("gemma3"), tmp_path / "out"

    def cut_short(path: Path, values: Mapping[str, Any]) -> None:
        if "checkpoint-" in str(path):
            return write_json(path, values)
        with replacing(path) as stream:
            stream.write(b'{"epoch":')
            raise KeyboardInterrupt

    flags = {**FLAGS, "max_steps": 2, "log_level": "warning"}
    with monkeypatch.context() as patch:
        patch.setattr(valid_state, "write_json", cut_short)
        assert run_script(script_flags(model, data, output, **flags)) == 130
    assert not (output / "trainer_state.json").exists()
    for name in ("all_results.json", "train_results.json"):
        (output / name).write_bytes(b"")
    capsys.readouterr()
    run(model, data, output, **flags, resume_from_checkpoint="true")
    said = capsys.readouterr().err
    for name in ("all_results.json", "train_results.json"):
        assert said.count(f"{output / name} is no whole JSON object, so it is set aside as {name}.broken.") == 1
    assert json.loads((output / "trainer_state.json").read_text())["global_step"] == 2
    assert not list(output.glob(".*"))
