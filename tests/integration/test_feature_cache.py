"""`--cache_vision_features`: runs that make features and runs that read them train the same weights, bit for bit.

And what features are of: other weights, another processor or another image is a miss.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from support.asked_twice import ADAPTER, FLAGS, kept_bytes, write_asked_twice
from support.rows import write_uneven_rows
from support.runs import capture_trainer, logged, run, script_flags
from support.tiny import build_model_folder
from vlm_lora.cli.main import run_script
from vlm_lora.config.run_config import ModelConfig, RunConfig
from vlm_lora.config.sources import parse
from vlm_lora.errors import ConfigError
from vlm_lora.model.families import family_of
from vlm_lora.model.features.obstacles import refuse_early
from vlm_lora.model.loading import load_config, load_model
from vlm_lora.training.feeding.vision_features import FILE, FOLDER, use_features


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run left behind."""

    results: dict[str, Any]
    losses: list[float]
    weights: str
    made: int
    read: int


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Return a function that trains with flags and a cache of this test's own, and says what came of it."""
    monkeypatch.setenv("VLM_LORA_CACHE", str(tmp_path / "cache"))
    trainers = capture_trainer(monkeypatch)

    def train(model: Path, data: Path, name: str, **changes: Any) -> Outcome:
        output = tmp_path / name
        results = run(model, data, output, **{**FLAGS, **changes})
        saved = output / (ADAPTER if (output / ADAPTER).exists() else "model.safetensors")
        features = trainers[-1].features
        return Outcome(
            results=results,
            losses=logged(output, "loss"),
            weights=hashlib.sha256(saved.read_bytes()).hexdigest(),
            made=features.made if features else -1,
            read=features.read if features else -1,
        )

    return train


@pytest.mark.parametrize("name", ["gemma3", "qwen2_5_vl", "mllama"])
def test_the_run_that_reads_is_the_run_that_made_them(
    name: str, model_folder: Callable[[str], Path], tmp_path: Path, trained: Callable[..., Outcome]
) -> None:
    model, data = model_folder(name), write_asked_twice(tmp_path / "data")
    made = trained(model, data, "made")
    size = kept_bytes(tmp_path)
    read = trained(model, data, "read")
    plain = trained(model, data, "plain", cache_vision_features="off")
    blanks = 1 if name == "mllama" else 0  # what fills up rows with fewer images than others of their batch
    assert (made.made, read.made, plain.made) == (4 + blanks, 0, -1)
    assert read.weights == made.weights
    assert read.losses == made.losses
    assert read.results["eval_perplexity"] == made.results["eval_perplexity"]
    assert kept_bytes(tmp_path) == size
    assert made.losses == pytest.approx(plain.losses, rel=1e-6, abs=1.1e-4), "logged with four digits"
    assert made.results["train_loss"] == pytest.approx(plain.results["train_loss"], rel=1e-6)
    assert made.results["eval_loss"] == pytest.approx(plain.results["eval_loss"], rel=1e-6)
    announced = json.loads((tmp_path / "made" / FILE).read_text(encoding="utf-8"))
    assert announced["different"] == 4
    assert announced["size"] == pytest.approx(size, rel=0.05)


def test_what_features_are_of_has_changed(
    model_folder: Callable[[str], Path], tmp_path: Path, trained: Callable[..., Outcome]
) -> None:
    """A miss for each, never features of something else: the run is that without a cache."""
    model, data = model_folder("qwen2_5_vl"), write_asked_twice(tmp_path / "data")
    first = trained(model, data, "first")
    assert first.made == 4
    for change in ("another size", "another tower", "another image"):
        flags = {"min_pixels": 3600} if change == "another size" else {}
        place = build_model_folder("qwen2_5_vl", tmp_path / "other", seed=1) if change == "another tower" else model
        if change == "another image":
            noise = np.random.default_rng(7).integers(0, 256, (32, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).save(data / "0.png")
        second = trained(place, data, f"{change}, kept", **flags)
        plain = trained(place, data, f"{change}, plain", cache_vision_features="off", **flags)
        # Of another image its own and that of the row with two of them.
        assert second.made == (2 if change == "another image" else 4), change
        assert second.results["train_loss"] == pytest.approx(plain.results["train_loss"], rel=1e-6), change
        assert second.results["train_loss"] != pytest.approx(first.results["train_loss"], rel=1e-4), change


def test_another_language_model_reads_them(
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    trained: Callable[..., Outcome],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The control: what the tower does not depend on is no miss. Full weights train on them as adapters do."""
    model, data = model_folder("gemma3"), write_asked_twice(tmp_path / "data")
    flags = {"peft_method": "none", "freeze_projector": True, "gradient_accumulation_steps": 2}
    adapter = trained(model, data, "adapter", max_steps=4)
    capsys.readouterr()
    trained(model, data, "audited", max_steps=4, log_level="info")
    assert "Gradient audit: all" in capsys.readouterr().err, "images count as seen, though no tower runs"
    full = trained(model, data, "full", **flags, gradient_checkpointing=True, per_device_train_batch_size=2)
    shutil.rmtree(tmp_path / "cache" / FOLDER)
    again = trained(model, data, "again", **flags, gradient_checkpointing=True, per_device_train_batch_size=2)
    plain = trained(model, data, "plain", **flags, per_device_train_batch_size=2, cache_vision_features="off")
    assert (adapter.made, full.made, again.made) == (4, 0, 4)
    assert again.weights == full.weights
    assert again.results["train_loss"] == pytest.approx(plain.results["train_loss"], rel=1e-6)


@pytest.mark.parametrize("name", ["gemma3", "qwen2_5_vl"])
def test_packed_rows_read_them_one_by_one(
    name: str, model_folder: Callable[[str], Path], tmp_path: Path, trained: Callable[..., Outcome]
) -> None:
    model, data = model_folder(name), write_asked_twice(tmp_path / "data")
    rows = trained(model, data, "rows", max_steps=3)
    packed = trained(model, data, "packed", packing=True, per_device_train_batch_size=1)
    plain = trained(model, data, "plain", packing=True, per_device_train_batch_size=1, cache_vision_features="off")
    assert (rows.made, packed.made) == (4, 0)
    assert packed.results["train_loss"] == pytest.approx(plain.results["train_loss"], rel=1e-6)


def test_a_run_that_is_resumed_ends_as_one_that_was_not(
    model_folder: Callable[[str], Path], tmp_path: Path, trained: Callable[..., Outcome]
) -> None:
    model, data = model_folder("qwen2_5_vl"), write_asked_twice(tmp_path / "data")
    flags = {"save_strategy": "steps", "save_steps": 2, "do_eval": False}
    whole = trained(model, data, "out", **flags)
    shutil.rmtree(tmp_path / "out" / "checkpoint-6")
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    shutil.rmtree(tmp_path / "cache" / FOLDER)
    resumed = trained(model, data, "out", **flags, resume_from_checkpoint="true")
    assert resumed.made == 4
    assert resumed.weights == whole.weights


def test_a_resumed_run_keeps_features_where_its_checkpoint_did(
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    trained: Callable[..., Outcome],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever speaks for or against them now: free room, what is known of the rows, epochs that are left."""
    model, data = model_folder("gemma3"), write_asked_twice(tmp_path / "data")
    flags = {"save_strategy": "steps", "save_steps": 2, "do_eval": False, "log_level": "info"}
    again = {**flags, "resume_from_checkpoint": "true"}
    assert trained(model, data, "with", **flags, max_steps=2).made == 4
    assert "cache_vision_features on" not in capsys.readouterr().err
    unsure = trained(model, data, "with", **again, max_steps=4, skip_check=True)
    said = capsys.readouterr().err
    assert (unsure.made, unsure.read > 0) == (0, True)
    assert "how many is not known before" in said
    assert "--cache_vision_features on in the checkpoint" not in said, "a choice that was left open is no change"
    assert trained(model, data, "with", **again, max_steps=6, vision_cache_gb=1e-9).made == -1
    assert "Vision features are not kept, unlike in the checkpoint's run: one token" in capsys.readouterr().err
    trained(model, data, "without", **flags, max_steps=2, cache_vision_features="off")
    assert trained(model, data, "without", **again, max_steps=4).made == -1
    assert "from a checkpoint that was trained without them" in capsys.readouterr().err
    assert trained(model, data, "without", **again, max_steps=6, cache_vision_features="on").made == 0
    assert "--cache_vision_features off in the checkpoint, on now" in capsys.readouterr().err


REASONS = [
    ({"lora_targets": "language,vision"}, r"the vision tower trains \(.*\), so its features change"),
    ({"lora_targets": "language,projector"}, r"the projector trains \(.*\), so its features change"),
    ({"peft_method": "none"}, "the projector trains, so its features .*--freeze_projector true"),
    ({"static_shapes": True}, "batches have planned shapes"),
    ({"torch_compile": True}, "--torch_compile compiles the model for pixels"),
    ({"vision_cache_gb": 1e-9}, r"one token of an image takes \d+ bytes, and 1 are allowed \(--vision_cache_gb 1e-09"),
    ({"vision_cache_gb": 1e-9, "skip_check": True}, "one token of an image takes"),
    ({"vision_cache_gb": 1e-6}, "those of 4 rows' images take .* GB, and 1e-06 GB are allowed"),
]


@pytest.mark.parametrize(("flags", "reason"), REASONS)
def test_on_is_refused_with_the_reason(
    flags: dict[str, Any],
    reason: str,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VLM_LORA_CACHE", str(tmp_path / "cache"))
    data = write_asked_twice(tmp_path / "data")
    words = {**FLAGS, **flags, "cache_vision_features": "on"}
    assert run_script(script_flags(model_folder("qwen2_5_vl"), data, tmp_path / "out", **words)) == 1
    assert re.search(f"--cache_vision_features on: {reason}", capsys.readouterr().err)


@pytest.mark.parametrize("engine", ["fsdp", "zero3", "zero2"])
def test_sharded_weights_are_an_obstacle(
    engine: str, model_folder: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A tower alone cannot be run by every process in step. ZeRO-2, which shards no weights, is the control."""
    run = parse(["--model_name_or_path", str(model_folder("gemma3")), "--cache_vision_features", "on"], environ={})
    model = load_model(run.model, model_kwargs={"torch_dtype": torch.float32})
    plugin = None if engine == "fsdp" else SimpleNamespace(zero_stage=int(engine[-1]))
    trainer = SimpleNamespace(
        args=SimpleNamespace(do_train=False, output_dir=str(tmp_path)),
        model=model,
        is_fsdp_enabled=engine == "fsdp",
        accelerator=SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin)),
    )

    def decide(run: RunConfig) -> None:
        use_features(run, trainer, family_of(model.config), None, static_shapes=False, tables={}, encode=build_nothing)

    if engine == "zero2":
        with pytest.raises(AttributeError, match="main_process_first"):  # it goes on, to look at the rows
            decide(run)
        return
    reason = "the weights are sharded, and a tower alone cannot be run by every process in step"
    with pytest.raises(ConfigError, match=f"--cache_vision_features on: {reason}. Leave it out, or type auto."):
        decide(run)
    with caplog.at_level("INFO", "vlm_lora"):
        decide(replace(run, batching=replace(run.batching, cache_vision_features="auto")))
    assert f"Vision features are not kept: {reason} (--cache_vision_features)." in caplog.messages


@pytest.mark.parametrize("words", [["--fsdp", "true"], ["--deepspeed", "zero3"]])
def test_settings_that_shard_are_refused_before_anything_is_read(
    words: list[str], model_folder: Callable[[str], Path]
) -> None:
    family = family_of(load_config(ModelConfig(model_name_or_path=str(model_folder("gemma3")))))
    for given in (words, ["--fsdp", "false"], ["--deepspeed", "zero2"]):
        run = parse([*given, "--cache_vision_features", "on"], environ={})
        if given == words:
            with pytest.raises(ConfigError, match="--cache_vision_features on: the weights are sharded"):
                refuse_early(run, family, trains=True, static_shapes=False)
        else:
            refuse_early(run, family, trains=True, static_shapes=False)


def build_nothing(name: str, row: int) -> Any:
    raise AssertionError(f"row {row} of {name} is read")


AUTO = [
    ({"num_train_epochs": 1, "do_eval": False, "dataset_name": "once"}, "each image is used once"),
    ({"skip_check": True}, r"without the check of the data \(--skip_check\) rows are not known"),
    ({"lora_targets": "language,vision", "num_train_epochs": 1}, "the vision tower trains"),
]


@pytest.mark.parametrize(("flags", "reason"), AUTO)
def test_auto_says_why_not(
    flags: dict[str, Any],
    reason: str,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    trained: Callable[..., Outcome],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_asked_twice(tmp_path / "data")
    if flags.get("dataset_name"):
        flags = {**flags, "dataset_name": write_uneven_rows(tmp_path / "once", rows=3)}
    assert trained(model_folder("gemma3"), data, "out", **flags, log_level="info").made == -1
    assert re.search(f"Vision features are not kept: {reason}", capsys.readouterr().err)


def test_a_folder_that_cannot_be_written_is_said_or_refused(
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    trained: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("VLM_LORA_CACHE", str(tmp_path / "taken"))
    model, data = model_folder("gemma3"), write_asked_twice(tmp_path / "data")
    reason = rf"{tmp_path}/taken/{FOLDER} cannot be written \(Not a directory\); set VLM_LORA_CACHE to"
    assert trained(model, data, "auto", log_level="info").made == -1
    assert len(re.findall(f"Vision features are not kept: {reason}", capsys.readouterr().err)) == 1
    words = {**FLAGS, "cache_vision_features": "on"}
    assert run_script(script_flags(model, data, tmp_path / "on", **words)) == 1
    assert re.search(f"--cache_vision_features on: {reason}", capsys.readouterr().err)


def test_evaluation_alone_reads_them_too(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two questions an image are reason enough, and no weight changes, whatever the settings would train."""
    monkeypatch.setenv("VLM_LORA_CACHE", str(tmp_path / "cache"))
    trainers = capture_trainer(monkeypatch)
    model, data = model_folder("gemma3"), write_asked_twice(tmp_path / "data")
    flags = {"do_eval": True, "peft_method": "none", "per_device_eval_batch_size": 3}
    kept = run(model, data, tmp_path / "kept", **flags)
    plain = run(model, data, tmp_path / "plain", **flags, cache_vision_features="off")
    assert (trainers[0].features.made, trainers[0].features.read) == (2, 1)
    assert trainers[1].features is None
    assert kept["eval_perplexity"] == pytest.approx(plain["eval_perplexity"], rel=1e-6)


def test_features_that_lie_there_are_used_though_each_image_is_seen_once(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an evaluation after a training. What is missing is made and kept as well."""
    monkeypatch.setenv("VLM_LORA_CACHE", str(tmp_path / "cache"))
    trainers = capture_trainer(monkeypatch)
    model, data = model_folder("gemma3"), write_uneven_rows(tmp_path / "data", rows=3, validation=2)
    measured = {"do_eval": True, "per_device_eval_batch_size": 2}
    run(model, data, tmp_path / "before", **measured)
    run(model, data, tmp_path / "trained", **{**FLAGS, **measured})
    kept = run(model, data, tmp_path / "kept", **measured)
    plain = run(model, data, tmp_path / "plain", **measured, cache_vision_features="off")
    before, trained, again, off = (trainer.features for trainer in trainers)
    assert before is off is None, "each image is used once, and nothing lies there yet"
    assert (trained.made, again.made, again.read) == (5, 0, 2)
    assert kept["eval_loss"] == pytest.approx(plain["eval_loss"], rel=1e-6)
    noise = np.random.default_rng(7).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(data / "validation-0.png")
    run(model, data, tmp_path / "completed", **measured)
    assert (trainers[-1].features.made, trainers[-1].features.read) == (1, 1)
