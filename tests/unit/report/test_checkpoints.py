"""Checkpoints are listed by number, and what a checkpoint lacks is named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vlm_lora.cli.main import main
from vlm_lora.report.checkpoints import describe_checkpoints
from vlm_lora.report.run_page.folder import read_run
from vlm_lora.training.checkpoints.contents import missing_parts


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}), encoding="utf-8")
    save_file({"a": torch.zeros(4)}, path / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt"):
        (path / name).write_bytes(b"x")
    return path


def test_numbers_not_letters_decide_the_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1000, 900, 20):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    assert main(["train", "--list-checkpoints", str(tmp_path)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["checkpoint", "step", "epoch", "saved", "parts"]
    assert [line.split()[:2] for line in lines] == [[f"checkpoint-{step}", str(step)] for step in (20, 900, 1000)]
    assert all(line.endswith("  complete") for line in lines)


def entries(path: Path, *logged: dict[str, object], **state: object) -> None:
    content = {"global_step": int(path.name.rpartition("-")[2]), "log_history": list(logged), **state}
    (path / "trainer_state.json").write_text(json.dumps(content), encoding="utf-8")


def test_losses_scores_and_the_best_one(tmp_path: Path) -> None:
    first, second = checkpoint(tmp_path, 2), checkpoint(tmp_path, 10)
    old: tuple[dict[str, object], ...] = (
        {"step": 1, "loss": 3.0},
        {"step": 2, "epoch": 0.5, "eval_loss": 2.25, "eval_anls": 0.5, "eval_runtime": 9},
    )
    new: tuple[dict[str, object], ...] = (
        {"step": 9, "loss": 1.0},
        {"step": 10, "epoch": 2.5, "eval_loss": 2.5, "eval_anls": 0.75},
        {"step": 11},
    )
    entries(first, *old)
    entries(second, *old, *new)
    head, *lines, best = [line.split() for line in describe_checkpoints(tmp_path).splitlines()]
    assert head[4:-1] == ["loss", "eval_loss", "eval_anls"]
    assert lines[0][:4] == ["checkpoint-2", "*", "2", "0.5"]
    assert [line[-4:-1] for line in lines] == [["3", "2.25", "0.5"], ["1", "2.5", "0.75"]]
    assert " ".join(best) == "* lowest eval_loss; no --metric_for_best_model was set"
    entries(second, *old, *new, best_model_checkpoint=f"elsewhere/{second.name}", best_metric=0.75)
    (second / "run.json").write_text(json.dumps({"settings": {"metric_for_best_model": "anls"}}), "utf-8")
    listed = describe_checkpoints(tmp_path)
    assert "checkpoint-10 *" in listed
    assert listed.endswith("\n* best by eval_anls: 0.75")
    (second / "run.json").rename(second / "run_settings.json")  # as checkpoints of earlier versions have it
    assert describe_checkpoints(tmp_path).endswith("\n* best by eval_anls: 0.75")


def test_a_loss_that_stands_at_the_checkpoint_before_is_not_repeated(tmp_path: Path) -> None:
    logged: list[dict[str, object]] = [{"step": 2, "loss": 3.0}, {"step": 6, "loss": 1.0}]
    for step in (2, 4, 6):
        entries(checkpoint(tmp_path, step), *(entry for entry in logged if int(str(entry["step"])) <= step))
    head, *lines = [line.split() for line in describe_checkpoints(tmp_path).splitlines()]
    assert [line[head.index("loss") + 1] for line in lines] == ["3", "-", "1"], "`saved` is two words"


def test_a_name_that_its_state_contradicts(tmp_path: Path) -> None:
    checkpoint(tmp_path, 7).rename(tmp_path / "checkpoint-8")
    assert describe_checkpoints(tmp_path).endswith("complete; its state is of step 7")


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("trainer_state.json", None, "trainer_state.json (missing or not readable)"),
        ("trainer_state.json", b"{", "trainer_state.json (missing or not readable)"),
        ("adapter_model.safetensors", None, "weights (none of"),
        ("adapter_model.safetensors", b"", "adapter_model.safetensors (cut off)"),
        ("adapter_model.safetensors", b"\x02\0\0\0\0\0\0\0{]", "adapter_model.safetensors (not readable)"),
        ("optimizer.pt", None, "optimizer.pt (missing or empty)"),
        ("scheduler.pt", b"", "scheduler.pt (missing or empty)"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, name: str, content: bytes | None, fault: str) -> None:
    path = checkpoint(tmp_path, 5)
    assert missing_parts(path) == []
    if content is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(content)
    (found,) = missing_parts(path)
    assert found.startswith(fault)
    assert f"incomplete: {fault}" in describe_checkpoints(tmp_path)


def test_weights_cut_in_half_and_missing_shards_are_seen(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 5)
    weights = path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    assert missing_parts(path) == ["adapter_model.safetensors (cut off)"]
    weights.unlink()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    save_file({"a": torch.zeros(4)}, path / "model-1.safetensors")
    assert missing_parts(path) == ["model-2.safetensors (missing)"]


def test_a_folder_that_is_not_there_or_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--list_checkpoints", str(tmp_path)]) == 0
    assert "holds no checkpoint-N folder" in capsys.readouterr().out
    assert main(["train", "--list_checkpoints", str(tmp_path / "none")]) == 1
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "state",
    ['{"log_history": 5}', '{"log_history": [5, {"step": "x", "loss": 1}], "global_step": "x"}', "[" * 100_000],
    ids=["no list", "odd entries", "nested deeply"],
)
def test_a_state_that_someone_broke_is_as_none(tmp_path: Path, state: str) -> None:
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text(state, encoding="utf-8")
    line = describe_checkpoints(tmp_path).splitlines()[1]
    assert line.startswith("checkpoint-2  2     -")
    assert read_run(tmp_path).log in ([], [{"step": "x", "loss": 1}])
