"""The record of a run: what stands in it, and that changed weights, rows and versions are named on going on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from support.runs import script_flags, whole_run
from support.sealed import seal_again
from vlm_lora import configure, train
from vlm_lora.cli.main import main, run_script
from vlm_lora.training.identity.surroundings import command
from vlm_lora.training.identity.versions import versions

ADAPTER = "adapter_model.safetensors"
FLAGS: dict[str, Any] = {
    "do_train": True,
    "do_eval": True,
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "save_strategy": "steps",
    "save_steps": 2,
    "lora_rank": 4,
    "log_level": "warning",
}


@pytest.fixture(scope="module")
def whole(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, `data` and the run `out` of four steps. Only copies of its parts may be changed."""
    return whole_run(tmp_path_factory.mktemp("whole"), model_folder("gemma3"), **FLAGS)


@pytest.fixture
def stopped(whole: Path, tmp_path: Path) -> Path:
    """All of it copied, the run as if it had ended after two steps; changed copies take the place of base and data."""
    shutil.copytree(whole, tmp_path / "copy")
    out = tmp_path / "copy" / "out"
    shutil.rmtree(out / "checkpoint-4")
    (out / ADAPTER).unlink()
    for record in (out / "checkpoint-2" / "run.json", out / "run.json"):
        text = record.read_text(encoding="utf-8")
        record.write_text(text.replace(str(whole), str(tmp_path / "copy")), encoding="utf-8")
    seal_again(out / "checkpoint-2")
    return tmp_path / "copy"


def go_on(root: Path, **changes: Any) -> int:
    flags = {**FLAGS, "resume_from_checkpoint": "true", **changes}
    return run_script(script_flags(root / "base", root / "data", root / "out", **flags))


def record_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return content


def change_row(file: Path, number: int) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[number] = json.dumps({**json.loads(lines[number]), "answer": "something else"})
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_the_record_says_what_the_run_is_and_its_checkpoints_keep_it(whole: Path) -> None:
    record = record_of(whole / "out")
    assert record == record_of(whole / "out" / "checkpoint-4")
    assert record["versions"] == versions()
    assert record["config"]["learning_rate"] == 1e-2
    assert record["settings"]["weight_decay"] == 0.0, "a default, which is not in the configuration"
    assert record["settings"]["cache_vision_features"] in ("on", "off"), "what became of auto"
    assert {name: part["rows"] for name, part in record["data"].items()} == {"train": 8, "validation": 2}
    assert record["data"]["train"]["files"][0]["path"] == str(whole / "data" / "train.jsonl")
    assert set(record["base_model"]["files"]) >= {"model.safetensors", "config.json", "tokenizer.json"}
    assert record["adapter"] is record["continues"] is None
    assert record["ranks"] == 1
    assert record["seeds"] == {"seed": 42, "data_seed": None, "split_seed": 42, "task_seed": 42}
    assert record["hardware"]["memory"] > 2**30
    listed = json.loads((whole / "out" / "run_files.json").read_text(encoding="utf-8"))
    assert "run.json" in listed["files"]


def test_a_base_model_with_other_weights_is_refused(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = stopped / "base" / "model.safetensors"
    weights = load_file(file)
    name = min(weights)
    weights[name].view(-1)[0] += 1
    save_file(weights, file, metadata={"format": "pt"})
    before = record_of(stopped / "out")
    assert go_on(stopped, allow_changed="seed") == 1
    said = capsys.readouterr().err
    assert "this differs from its run:\n  base model: model.safetensors: " in said
    assert "now (cannot be allowed)" in said
    assert "A new run may begin with a checkpoint's weights" in said
    assert record_of(stopped / "out") == before


def test_a_row_that_says_something_else_is_refused(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_row(stopped / "data" / "train.jsonl", 5)
    before = record_of(stopped / "out")
    assert go_on(stopped) == 1
    said = capsys.readouterr().err
    assert f"{stopped / 'out' / 'checkpoint-2'}: the rows differ from those of its run:\n" in said
    assert f"  train: {stopped / 'data' / 'train.jsonl'} row 5 (line 6) of 8 says something else\n" in said
    assert "put them back as they were" in said
    assert record_of(stopped / "out") == before


def test_rows_that_an_allowed_setting_reads_otherwise_are_noted(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows to measure on may change, too: nothing is trained on them."""
    change_row(stopped / "data" / "validation.jsonl", 1)
    assert go_on(stopped, system_prompt="Be brief.", allow_changed="system_prompt") == 0
    said = capsys.readouterr().err
    assert "Rows changed since the checkpoint's run (as --system_prompt may have it): train: " in said
    assert f"Rows changed since the checkpoint's run: validation: {stopped / 'data' / 'validation.jsonl'} row " in said
    continued = record_of(stopped / "out" / "checkpoint-4")["continues"]
    assert continued["checkpoint"] == str(stopped / "out" / "checkpoint-2")
    assert any(line.startswith("--system_prompt not given in the checkpoint") for line in continued["changed"])
    assert any(line.startswith("train: ") for line in continued["changed"])


def test_versions(whole: Path, stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A patch release goes on, bitwise the run that was never stopped; a minor one needs to be allowed."""
    record = stopped / "out" / "checkpoint-2" / "run.json"
    content = record_of(record.parent)
    here = content["versions"]["torch"]
    major, minor, *_ = here.split(".")
    content["versions"] |= {"torch": f"{major}.{int(minor) - 1}.0", "python": "3.9.0"}
    record.write_text(json.dumps(content), encoding="utf-8")
    seal_again(record.parent)
    assert go_on(stopped) == 1
    said = capsys.readouterr().err
    assert f"  version of torch: {major}.{int(minor) - 1}.0 in the checkpoint, {here} now\n" in said
    assert "--allow_changed versions" in said
    assert "python" not in said
    content["versions"]["torch"] = f"{major}.{minor}.999"
    record.write_text(json.dumps(content), encoding="utf-8")
    seal_again(record.parent)
    assert go_on(stopped, log_level="info") == 0
    said = capsys.readouterr().err
    assert "version of python: 3.9.0 in the checkpoint" in said
    assert f"version of torch: {major}.{minor}.999 in the checkpoint, {here} now" in said
    assert (stopped / "out" / ADAPTER).read_bytes() == (whole / "out" / ADAPTER).read_bytes()


def test_a_record_of_an_earlier_version_is_read_with_one_warning(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = stopped / "out" / "checkpoint-2" / "run.json"
    content = {name: record_of(record.parent)[name] for name in ("format", "settings", "versions")}
    record.unlink()
    (record.parent / "run_settings.json").write_text(json.dumps(content), encoding="utf-8")
    seal_again(record.parent)
    change_row(stopped / "data" / "train.jsonl", 5)
    assert go_on(stopped) == 0
    said = capsys.readouterr().err
    assert said.count("Whether base model and rows are those of its run is not known.") == 1


def test_the_command_is_kept_without_secrets(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["/bin/vlm-lora", "train", "--hub_token", "x1", "--seed", "7"]
    monkeypatch.setattr("sys.argv", words)
    assert command() == "vlm-lora train --hub_token '***' --seed 7"
    monkeypatch.setattr("sys.argv", ["-c"])
    assert command() is None
    kept = (whole / "out" / "run.json").read_text(encoding="utf-8")
    assert "hub_token" not in json.loads(kept)["settings"]


def repeat(record: Path, *words: str) -> int:
    return run_script(["--from_run", str(record), *words])


def test_a_repeat_has_the_same_bytes_and_says_so(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    # Hardware's libraries set some when they are imported, which this process has behind it.
    for name, value in record_of(whole / "out")["environment"].items():
        monkeypatch.setenv(name, value)
    assert repeat(whole / "out", "--output_dir", str(again)) == 0
    said = capsys.readouterr().err
    same = "settings, versions, code, rows, base model and machine are the same."
    assert f"Repeats {whole / 'out'}: {same}" in said, said
    assert "Differs from" not in said
    assert (again / ADAPTER).read_bytes() == (whole / "out" / ADAPTER).read_bytes()
    assert record_of(again)["repeats"] == str(whole / "out" / "run.json")
    assert "from_run" not in (again / "run_config.yaml").read_text(encoding="utf-8")
    # The control. A record may be repeated that is itself of a repeat, and a checkpoint's is the run's.
    assert repeat(again / "checkpoint-2", "--output_dir", str(other), "--seed", "7") == 0
    said = capsys.readouterr().err
    assert f"Differs from {again / 'checkpoint-2'}: --seed 42 then, 7 now.\n" in said
    assert said.count("Differs from") == 1
    assert (other / ADAPTER).read_bytes() != (whole / "out" / ADAPTER).read_bytes()


def test_a_repeat_names_what_cannot_be_the_same(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not refused: a new folder holds it, and the record there says what it is."""
    out = stopped / "out"
    content = record_of(out)
    here = content["versions"]["transformers"]
    content["versions"]["transformers"] = "4.0.0"
    content["environment"]["PYTORCH_ALLOC_CONF"] = "a"
    content["hardware"]["cpu"] = "Another CPU"
    content["git"] = {"commit": "0" * 40}
    (out / "run.json").write_text(json.dumps(content), encoding="utf-8")
    change_row(stopped / "data" / "train.jsonl", 5)
    file = stopped / "base" / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), "top_k": 7}), encoding="utf-8")
    assert repeat(out, "--max_steps", "1", "--save_strategy", "no") == 0
    said = capsys.readouterr().err
    new = record_of(stopped / "out-repeat")
    lines = [line.removeprefix(f"Differs from {out}: ") for line in said.splitlines() if "Differs from" in line]
    for beginning in (
        f"version of transformers: 4.0.0 then, {here} now.",
        "base model: generation_config.json: ",
        f"rows: train: {stopped / 'data' / 'train.jsonl'} row 5 (line 6) of 8 says something else.",
        f"cpu Another CPU then, {new['hardware']['cpu']} now.",
        "environment variable PYTORCH_ALLOC_CONF a then, not set now.",
        f"git commit {'0' * 40} then, ",
    ):
        assert any(line.startswith(beginning) for line in lines), (beginning, lines)


def test_a_repeat_from_other_places_is_the_same(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole / "base", tmp_path / "base")
    shutil.copytree(whole / "data", tmp_path / "data")
    places = ["--model_name_or_path", str(tmp_path / "base"), "--dataset_name", str(tmp_path / "data")]
    short = ["--max_steps", "1", "--save_strategy", "no"]
    assert repeat(whole / "out", "--output_dir", str(tmp_path / "out"), *places, *short) == 0
    said = capsys.readouterr().err
    differs = [line for line in said.splitlines() if line.startswith("Differs from")]
    assert not [line for line in differs if "_name" in line or "rows" in line or "base model" in line]
    change_row(tmp_path / "data" / "train.jsonl", 5)
    assert repeat(whole / "out", "--output_dir", str(tmp_path / "other"), *places, *short) == 0
    said = capsys.readouterr().err
    assert f"Differs from {whole / 'out'}: --dataset_name {whole / 'data'} then, {tmp_path / 'data'} now." in said
    assert "row 5 (line 6) of 8 says something else" in said


def test_metrics_that_the_data_refuses_leave_no_folder(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {**FLAGS, "metrics": "boxes"}
    assert run_script(script_flags(whole / "base", whole / "data", tmp_path / "out", **flags)) == 1
    assert "error: --metrics boxes: no answer of the data has boxes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_runs_that_cannot_be_repeated(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert repeat(whole / "out", "--output_dir", str(whole / "out")) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert main(["eval", "--from_run", str(whole / "out")]) == 1
    assert f"vlm-lora eval --model_name_or_path {whole / 'out'}" in capsys.readouterr().err
    (tmp_path / "run_config.yaml").write_text("seed: 7\n", encoding="utf-8")
    assert repeat(tmp_path) == 1
    assert f"--config {tmp_path / 'run_config.yaml'} --output_dir NEW" in capsys.readouterr().err


def test_a_program_repeats_a_run(whole: Path, tmp_path: Path) -> None:
    run_again = configure(from_run=whole / "out", output_dir=tmp_path / "out", max_steps=1, save_strategy="no")
    train(run_again)
    assert record_of(tmp_path / "out")["config"]["learning_rate"] == 1e-2
