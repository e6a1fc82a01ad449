"""What counts as a change between a checkpoint's run and the one that goes on from it, and what is said of it."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from vlm_lora.config.repeated import FILE
from vlm_lora.config.run_config import ModelConfig, RunConfig, TuningConfig
from vlm_lora.errors import ConfigError
from vlm_lora.training.checkpoints.changed_settings import Change, compare, differences
from vlm_lora.training.checkpoints.run_settings import (
    absolute,
    default_settings,
    effective_settings,
    plain,
)
from vlm_lora.training.checkpoints.setting_kinds import Kind
from vlm_lora.training.identity.record import RunIdentity, write_identity
from vlm_lora.training.identity.versions import versions

SETTLED = {"backend": "cpu", "dtype": "float32", "attn_implementation": "sdpa", "max_length": 128}
RUN = RunConfig(model=ModelConfig(model_name_or_path="org/model", token="hf_secret"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run's settings as a checkpoint holds them."""
    folder = tmp_path_factory.mktemp("out")
    arguments = TrainingArguments(str(folder), use_cpu=True, report_to="none", max_steps=4, hub_token="hf_other")
    run = replace(RUN, environment={"WANDB_API_KEY": "key"}, raw={"gradient_checkpointing": True})
    found = effective_settings(run, arguments, settled={**SETTLED, "static_shapes": False})
    loaded: dict[str, Any] = json.loads(json.dumps(found))
    return loaded


def identity(settings: dict[str, Any], **others: Any) -> RunIdentity:
    return RunIdentity(**{"settings": settings, "versions": versions(), "base_model": {"name": "org/model"}, **others})


def write_settings(folder: Path, settings: dict[str, Any], **others: Any) -> None:
    write_identity(folder, identity(settings, **others))


def changed(settings: dict[str, Any], **changes: Any) -> dict[str, Kind]:
    found = differences(settings, {**settings, **changes}, defaults={})
    return {change.name: change.kind for change in found}


def test_defaults_are_kept_and_secrets_are_not(settings: dict[str, Any]) -> None:
    assert settings["learning_rate"] == 5e-5
    assert settings["lora_rank"] == 16
    assert settings["freeze_embeddings"] is False, "as the language model"
    assert settings["gradient_checkpointing"] is True, "which the training arguments do not hold"
    assert settings["global_batch_size"] == 8
    text = json.dumps(settings)
    assert not any(word in text for word in ("hf_secret", "hf_other", "WANDB_API_KEY", "hub_token"))


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Kind]]] = {
    "nothing": ({}, {}),
    "a rate": ({"learning_rate": 1e-3}, {"learning_rate": Kind.CHANGES_RESULT}),
    "a whole number for a fraction": ({"weight_decay": 0, "warmup_steps": 0.0}, {}),
    "true is not 1": ({"bf16_full_eval": 0}, {"bf16_full_eval": Kind.FREE}),
    "the cadence": (
        {"max_steps": 8, "save_steps": 1, "logging_steps": 3, "eval_strategy": "steps", "dataloader_num_workers": 2},
        dict.fromkeys(
            ("max_steps", "save_steps", "logging_steps", "eval_strategy", "dataloader_num_workers"), Kind.FREE
        ),
    ),
    "the split of the batch": (
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "world_size": 2},
        dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps", "world_size"), Kind.FREE),
    ),
    "the split of shapes": (
        {"static_shapes": True, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        dict.fromkeys(
            ("static_shapes", "per_device_train_batch_size", "gradient_accumulation_steps"), Kind.CHANGES_RESULT
        ),
    ),
    "the batch": ({"global_batch_size": 16}, {"global_batch_size": Kind.CHANGES_RESULT}),
    "the seed, which the data's follows": ({"seed": 7}, {"seed": Kind.CHANGES_RESULT}),
    "the data's seed, said aloud": ({"data_seed": 42}, {}),
    "the data's seed": ({"data_seed": 7}, {"data_seed": Kind.CHANGES_RESULT}),
    "another method": ({"peft_method": "none", "lora_rank": 4, "freeze_vision": False}, {"peft_method": Kind.NEVER}),
    "another optimizer": ({"optim": "sgd"}, {"optim": Kind.NEVER}),
    "another base": ({"model_name_or_path": "org/other"}, {"model_name_or_path": Kind.NEVER}),
    "4-bit kind without 4 bits": ({"bnb_4bit_quant_type": "fp4"}, {}),
    "how processes talk, where there is one": ({"ddp_backend": "gloo", "ddp_bucket_cap_mb": 7}, {}),
    "a part's own rate": ({"vision_learning_rate": 1e-5}, {"vision_learning_rate": Kind.NEVER}),
    "a schedule by losses": (
        {"lr_scheduler_type": "reduce_lr_on_plateau", "max_grad_norm": 2.0},
        {"lr_scheduler_type": Kind.NEVER, "max_grad_norm": Kind.CHANGES_RESULT},
    ),
    "a field of tomorrow": ({"spin": 1}, {}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_counts_as_a_change(name: str, settings: dict[str, Any]) -> None:
    changes, expected = CHANGES[name]
    assert changed(settings, **changes) == expected


def test_one_implementation_of_an_optimizer_for_another(settings: dict[str, Any]) -> None:
    one = {**settings, "optim": "adamw_torch"}
    assert changed(one, optim="adamw_torch_fused") == {"optim": Kind.CHANGES_RESULT}
    assert changed(one, optim="adafactor") == {"optim": Kind.NEVER}


def test_two_rates_of_a_part(settings: dict[str, Any]) -> None:
    one = {**settings, "vision_learning_rate": 1e-5}
    assert changed(one, vision_learning_rate=2e-5) == {"vision_learning_rate": Kind.CHANGES_RESULT}


def test_under_deepspeed(settings: dict[str, Any]) -> None:
    """Its checkpoints hold the optimizer by process and precision; one of its own keeps its numbers."""
    zero = {**settings, "deepspeed": {"zero_optimization": {"stage": 2}}}
    assert changed(zero, learning_rate=1e-3) == {"learning_rate": Kind.CHANGES_RESULT}
    assert changed(zero, world_size=2, bf16=True) == {"world_size": Kind.NEVER, "bf16": Kind.NEVER}
    assert changed(zero, deepspeed={"zero_optimization": {"stage": 3}}) == {"deepspeed": Kind.NEVER}
    own = {**zero, "deepspeed": {"optimizer": {"type": "AdamW"}}}
    assert changed(own, weight_decay=0.5, seed=1) == {"weight_decay": Kind.NEVER, "seed": Kind.CHANGES_RESULT}
    own = {**zero, "deepspeed": {"scheduler": {"type": "WarmupLR"}}}
    assert changed(own, learning_rate=1e-3, weight_decay=0.5) == {
        "learning_rate": Kind.NEVER,
        "weight_decay": Kind.CHANGES_RESULT,
    }


def test_a_setting_that_the_record_does_not_know_had_its_default(settings: dict[str, Any]) -> None:
    older = {name: value for name, value in settings.items() if name != "on_overflow"}
    defaults = {"on_overflow": "error"}
    assert differences(older, settings, defaults=defaults) == []
    (change,) = differences(older, {**settings, "on_overflow": "drop"}, defaults=defaults)
    assert (change.saved, change.now) == ("error", "drop")


def test_a_run_from_before_boxes_could_be_counted_otherwise_counted_pixels(settings: dict[str, Any]) -> None:
    older = {name: value for name, value in settings.items() if name != "box_coordinates"}
    defaults = default_settings(TrainingArguments)
    (change,) = differences(older, settings, defaults=defaults)
    assert (change.name, change.saved, change.now) == ("box_coordinates", "pixels", "auto")
    assert change.kind is Kind.CHANGES_RESULT
    assert differences(older, {**settings, "box_coordinates": "pixels"}, defaults=defaults) == []


def resume(checkpoint: Path, settings: dict[str, Any], *allowed: str) -> list[str]:
    now = identity(settings)
    found, _ = compare(checkpoint, now, allowed=frozenset(allowed), arguments_class=TrainingArguments)
    return [change.name for change in found]


def test_the_refusal_names_all_and_what_to_add(settings: dict[str, Any], tmp_path: Path) -> None:
    write_settings(tmp_path, settings)
    now = {**settings, "learning_rate": 1e-3, "weight_decay": 0.5, "seed": 7, "max_steps": 8}
    with pytest.raises(ConfigError) as refused:
        resume(tmp_path, now, "seed")
    assert str(refused.value) == (
        f"--resume_from_checkpoint {tmp_path}: settings differ from those of its run:\n"
        "  --learning_rate 5e-05 in the checkpoint, 0.001 now\n"
        "  --weight_decay 0.0 in the checkpoint, 0.5 now\n"
        "Give the checkpoint's settings. To go on with the new ones, add: "
        "--allow_changed learning_rate seed weight_decay"
    )
    assert resume(tmp_path, now, "seed", "learning_rate", "weight_decay", "fp16") == [
        "learning_rate",
        "max_steps",
        "seed",
        "weight_decay",
    ]


def test_what_can_never_be_allowed_is_marked(settings: dict[str, Any], tmp_path: Path) -> None:
    fsdp = {"fsdp": ["full_shard"]}
    write_settings(tmp_path, {**settings, **fsdp, "fsdp_config": {"min_num_params": 0, "xla": False}})
    now = {**settings, **fsdp, "peft_method": "none", "optim": "sgd", "vision_learning_rate": 1e-5, "seed": 1}
    now["fsdp_config"] = {"min_num_params": 7, "xla": False}
    with pytest.raises(ConfigError) as refused:
        resume(tmp_path, now, "optim", "vision_learning_rate")
    text = str(refused.value)
    assert "  --peft_method lora in the checkpoint, none now (cannot be allowed)\n" in text
    assert "sgd now (cannot be allowed)\n" in text
    assert "1e-05 now (cannot be allowed: the optimizer would have other groups of weights)\n" in text
    assert "  --fsdp_config min_num_params: 0 in the checkpoint, 7 now\n" in text
    assert "those that are not marked, add: --allow_changed fsdp_config optim seed vision_learning_rate\n" in text
    assert "A new run may begin with a checkpoint's weights" in text


def test_free_changes_are_noted(settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_settings(tmp_path, settings)
    with caplog.at_level(logging.INFO):
        resume(tmp_path, {**settings, "save_steps": 1, "seed": 7}, "seed")
    assert "Changed since the checkpoint's run: --save_steps 500 in the checkpoint, 1 now." in caplog.text
    assert "Changed as --allow_changed says: --seed 42 in the checkpoint, 7 now." in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert resume(tmp_path, settings) == []
    assert caplog.text == ""


@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_another_split_with_dropout_is_said_to_differ(
    dropout: float, settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = {**settings, "lora_dropout": dropout}
    write_settings(tmp_path, before)
    assert resume(tmp_path, {**before, "world_size": 2, "per_device_train_batch_size": 4}) == [
        *("per_device_train_batch_size", "world_size")
    ]
    assert ("losses will differ from those of the run" in caplog.text) is bool(dropout)
    caplog.clear()
    resume(tmp_path, {**before, "save_steps": 1})
    assert "losses will differ" not in caplog.text


def test_what_was_not_given_is_said_so() -> None:
    change = Change(name="pack_length", saved=512, now=None, kind=Kind.CHANGES_RESULT)
    assert change.lines() == ["--pack_length 512 in the checkpoint, not given now"]


def test_a_record_that_is_not_there_or_broken(
    settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert resume(tmp_path, settings) == []
    assert "no record of its run's settings" in caplog.text
    (tmp_path / FILE).write_text('{"format": 1, "settings"')
    with pytest.raises(ConfigError, match="cannot be read"):
        resume(tmp_path, settings)
    write_settings(tmp_path, settings)
    record = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({**record, "format": 2}))
    with pytest.raises(ConfigError, match="has the format 2 and this version reads 1"):
        resume(tmp_path, settings)


def test_one_place_under_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    monkeypatch.chdir(tmp_path)
    here = str(tmp_path / "data")
    for name in ("data", "./data/", str(tmp_path / "link"), "data/../data"):
        assert absolute(name) == here
    assert absolute("data + org/set") == f"{here} + org/set"
    assert absolute("data/{0..3}.tar") == f"{here}/{{0..3}}.tar"
    assert absolute("data/a.jsonl,data/b.jsonl") == absolute(f"{here}/a.jsonl, {here}/b.jsonl")
    assert absolute("data/*.jsonl") == f"{here}/*.jsonl"
    for other in ("org/set", "set", "https://host/data", "data/{a", None):
        assert absolute(other) == other


def test_values_after_a_trip_through_json() -> None:
    import torch

    for value in (("a", 1), {"b": (1.5, None)}, {}, float("inf"), torch.bfloat16, TuningConfig(), Path("x")):
        assert json.loads(json.dumps(plain(value))) == plain(value)
    assert plain({}) is None
    assert plain(torch.bfloat16) == "bfloat16"
    assert plain(float("inf")) != plain(float("-inf"))


def test_what_another_version_or_backend_fills_in_is_no_change(settings: dict[str, Any]) -> None:
    """On one process without FSDP; a flag of one adapter says nothing of another's run. The controls matter."""
    filled = {
        "fsdp_config": {"min_num_params": 7},
        "average_tokens_across_devices": not settings["average_tokens_across_devices"],
    }
    assert changed(settings, **filled) == {}
    assert changed({**settings, "fsdp": ["full_shard"]}, fsdp_config={"min_num_params": 7}) != {}
    assert changed({**settings, "world_size": 2}, average_tokens_across_devices=None) != {}
    here = {**settings, "backend": "habana", "use_lazy_mode": True}
    assert changed(here, use_lazy_mode=False) == {"use_lazy_mode": Kind.CHANGES_RESULT}
    assert changed(here, use_lazy_mode=None, backend="gaudi") == {"backend": Kind.CHANGES_RESULT}
