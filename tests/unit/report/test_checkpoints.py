"""Checkpoints are listed by number, and what a checkpoint lacks is named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vlm_lora.cli.main import main
from vlm_lora.report.checkpoints import describe_checkpoints
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
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["checkpoint-20", "checkpoint-900", "checkpoint-1000"]
    assert all(line.endswith("  complete") for line in lines)
    assert "step 900  20" in lines[1]


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
