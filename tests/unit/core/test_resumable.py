"""A checkpoint without the state that this run's engine reads is refused; so is another engine's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from vlm_lora.errors import ConfigError
from vlm_lora.training.checkpoints.choosing import find_checkpoint
from vlm_lora.training.checkpoints.contents import ENGINES, FLAGS, missing_parts, refuse_to_resume, state_of
from vlm_lora.training.engine import engine_of

STATES = {
    "DeepSpeed": ("global_step5/mp_rank_00_model_states.pt", "latest", "scheduler.pt"),
    "FSDP": ("optimizer.bin", "pytorch_model_fsdp.bin", "scheduler.pt"),
    "no engine": ("optimizer.pt", "scheduler.pt"),
}
PAIRS = [(saved, asked) for saved in STATES for asked in STATES]


def checkpoint(folder: Path, engine: str) -> Path:
    path = folder / "checkpoint-5"
    for name in STATES[engine]:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"x")
    (path / "trainer_state.json").write_text(json.dumps({"global_step": 5}), encoding="utf-8")
    save_file({"a": torch.zeros(4)}, path / "adapter_model.safetensors")
    return path


@pytest.mark.parametrize(("saved", "asked"), PAIRS)
def test_only_the_engine_that_saved_a_checkpoint_goes_on_from_it(saved: str, asked: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, saved)
    assert state_of(path) == saved
    assert missing_parts(path) == []
    if saved == asked:
        refuse_to_resume(path, asked)
        return
    with pytest.raises(ConfigError, match=f"was saved with {saved}, and this run has {asked}.*{FLAGS[saved]}"):
        refuse_to_resume(path, asked)


@pytest.mark.parametrize("engine", STATES)
def test_weights_alone_are_refused_by_every_engine(engine: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, "no engine")
    for name in STATES["no engine"]:
        (path / name).unlink()
    with pytest.raises(ConfigError, match=r"optimizer\.pt \(missing.*scheduler\.pt.*--save_only_model.*--list_check"):
        refuse_to_resume(path, engine)


def test_true_passes_over_weights_alone_for_an_older_whole_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As after SIGUSR1 in a run with --save_only_model, which went on and was cut short."""
    whole = checkpoint(tmp_path, "no engine")
    alone = tmp_path / "checkpoint-9"
    shutil.copytree(whole, alone)
    assert find_checkpoint(tmp_path, True) == str(alone)
    (alone / "optimizer.pt").unlink()
    assert find_checkpoint(tmp_path, True) == str(whole)
    assert f"{alone}: it lacks optimizer.pt (missing or empty); going on from {whole} instead." in caplog.messages
    assert sum(f"{whole} has no MANIFEST.json, as earlier versions" in text for text in caplog.messages) == 1
    (whole / "scheduler.pt").unlink()
    assert find_checkpoint(tmp_path, True) == str(alone), "none is whole: the newest is refused by name"


@pytest.mark.parametrize(
    ("engine", "name"), [("DeepSpeed", "latest"), ("FSDP", "scheduler.pt"), ("no engine", "scheduler.pt")]
)
def test_half_a_state_is_refused(engine: str, name: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, engine)
    (path / name).unlink()
    with pytest.raises(ConfigError, match=rf"checkpoint-5: {name} \(missing or empty\)"):
        refuse_to_resume(path, engine)


def test_the_engine_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(STATES) == set(ENGINES) == set(FLAGS)
    plain = SimpleNamespace(deepspeed_plugin=None, fsdp="")
    assert engine_of(plain) == "no engine"
    assert engine_of(SimpleNamespace(deepspeed_plugin=object(), fsdp="")) == "DeepSpeed"
    assert engine_of(SimpleNamespace(deepspeed_plugin=None, fsdp=True)) == "FSDP"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert engine_of(plain) == "FSDP"
