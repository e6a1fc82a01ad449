"""Every other name of a setting means what its users mean by it."""

import json
from pathlib import Path
from typing import Any

import pytest

from vlm_lora.config.aliases import DROPPED, IGNORED, RESTATED, aliases, describe_aliases
from vlm_lora.config.fields import flatten, own_fields
from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.sources import parse

ROAD = (aliases()["use_habana"].values or {})[True]
"""Gaudi's adapter that goes with the installed transformers."""

# alias, value, (canonical name, value); an empty mapping: nothing is set
MEANINGS: list[tuple[str, Any, dict[str, Any]]] = [
    ("model_name", "m", {"model_name_or_path": "m"}),
    ("epochs", "2", {"num_train_epochs": "2"}),
    ("grad_accum", "2", {"gradient_accumulation_steps": "2"}),
    ("num_workers", "2", {"dataloader_num_workers": "2"}),
    ("persistent_workers", "true", {"dataloader_persistent_workers": "true"}),
    ("prefetch_factor", "2", {"dataloader_prefetch_factor": "2"}),
    ("tar_pattern", "s/*.tar", {"dataset_name": "s/*.tar"}),
    ("eval_tar_pattern", "e/*.tar", {"validation_name": "e/*.tar"}),
    ("val_samples_per_epoch", "3", {"max_eval_samples": 3}),
    ("train_vision", "true", {"freeze_vision": False}),
    ("train_vision", "false", {"freeze_vision": True}),
    ("no_eval", "true", {"do_eval": False}),
    ("training_data_path", "d.json", {"dataset_name": "d.json"}),
    ("validation_data_path", "d.json", {"validation_name": "d.json"}),
    ("dataset_text_field", "messages", {"messages_column": "messages"}),
    ("dataset_image_field", "images", {"image_column": "images"}),
    ("torch_dtype", "bfloat16", {"dtype": "bfloat16"}),
    ("r", "8", {"lora_rank": 8}),
    ("target_modules", "q_proj", {"lora_targets": "q_proj"}),
    ("lora_target_modules", "q_proj", {"lora_targets": "q_proj"}),
    ("image_min_pixels", "1024", {"min_pixels": 1024}),
    ("image_max_pixels", "4096", {"max_pixels": 4096}),
    ("use_bnb_nested_quant", "true", {"bnb_4bit_use_double_quant": True}),
    ("use_flash_attn", "true", {"attn_implementation": "flash_attention_2"}),
    ("use_flash_attn", "false", {"attn_implementation": "sdpa"}),
    ("base_model", "m", {"model_name_or_path": "m"}),
    ("num_epochs", "2", {"num_train_epochs": "2"}),
    ("batch_size", "2", {"per_device_train_batch_size": "2"}),
    ("max_seq_length", "512", {"max_length": 512}),
    ("lora_r", "8", {"lora_rank": 8}),
    ("use_flash_attention", "True", {"attn_implementation": "flash_attention_2"}),
    ("use_flash_attention", "False", {"attn_implementation": "sdpa"}),
    ("deepspeed_config", "zero3", {"deepspeed": "zero3"}),
    ("deepspeed_config", "", {}),
    ("wandb_project", "p", {"environment": {"WANDB_PROJECT": "p"}, "report_to": "wandb"}),
    ("wandb_project", "", {}),
    ("use_habana", "true", {"backend": ROAD}),
    ("use_habana", "false", {}),
    ("evaluation_strategy", "epoch", {"eval_strategy": "epoch"}),
    ("use_cpu", "true", {"backend": "cpu"}),
    ("use_cpu", "false", {}),
    ("no_cuda", "true", {"backend": "cpu"}),
    ("no_cuda", "false", {}),
    ("per_gpu_train_batch_size", "2", {"per_device_train_batch_size": "2"}),
    ("per_gpu_eval_batch_size", "2", {"per_device_eval_batch_size": "2"}),
    ("torchdynamo", "inductor", {"torch_compile_backend": "inductor"}),
    ("push_to_hub_model_id", "m", {"hub_model_id": "m"}),
    ("push_to_hub_token", "t", {"hub_token": "t"}),
    ("adafactor", "true", {"optim": "adafactor"}),
    ("adafactor", "false", {}),
    ("group_by_length", "true", {"train_sampling_strategy": "group_by_length"}),
    ("group_by_length", "false", {"train_sampling_strategy": "random"}),
    ("include_inputs_for_metrics", "true", {"include_for_metrics": ["inputs"]}),
    ("include_inputs_for_metrics", "false", {}),
    ("activation_checkpointing", "true", {"gradient_checkpointing": "true"}),
    ("activation_checkpointing_kwargs", "{}", {"gradient_checkpointing_kwargs": "{}"}),
]


def given(run: RunConfig) -> dict[str, Any]:
    """Settings that differ from the defaults, the backend's included."""
    defaults = flatten(RunConfig())
    return {name: value for name, value in flatten(run).items() if value != defaults[name]} | dict(run.raw)


@pytest.mark.parametrize(("alias", "value", "meaning"), MEANINGS)
def test_alias(alias: str, value: str, meaning: dict[str, Any]) -> None:
    run = parse([f"--{alias}={value}"], environ={})
    everything = {**flatten(run), **run.raw}
    assert {name: everything[name] for name in meaning} == meaning
    assert set(given(run)) <= set(meaning), "an alias sets nothing else"


def test_every_alias_is_tested() -> None:
    assert {alias for alias, _, _ in MEANINGS} == set(aliases())


@pytest.mark.parametrize("row", aliases().values(), ids=lambda row: row.name)
def test_no_alias_hides_a_setting_or_chains(row: Any) -> None:
    assert row.name not in own_fields()
    assert row.canonical not in aliases()


def test_every_name_is_described_once() -> None:
    names = [alias for alias, _, _ in describe_aliases()]
    assert len(names) == len(set(names))
    assert set(names) == {*aliases(), *DROPPED, *RESTATED, *IGNORED}
    assert (
        "use_flash_attn",
        "true: attn_implementation = flash_attention_2; false: attn_implementation = sdpa",
    ) in [(alias, meaning) for alias, meaning, _ in describe_aliases()]


def test_what_an_alias_implies_is_described() -> None:
    meanings = {alias: meaning for alias, meaning, _ in describe_aliases()}
    assert meanings["wandb_project"] == "environment.WANDB_PROJECT; report_to = wandb unless given"
    assert meanings["lora_r"] == "lora_rank"


def test_the_config_driven_users_file(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    content = {
        "model_name_or_path": "ibm-granite/granite-vision-3.2-2b",
        "training_data_path": "train.jsonl",
        "dataset_text_field": "messages",
        "dataset_image_field": "images",
        "torch_dtype": "bfloat16",
        "use_flash_attn": False,
        "remove_unused_columns": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "accelerate_launch_args": {"fsdp_transformer_layer_cls_to_wrap": "GraniteDecoderLayer"},
        "peft_method": "lora",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "v_proj"],
    }
    file.write_text(json.dumps(content))
    run = parse([], environ={"VLM_LORA_CONFIG": str(file)})
    assert run.tuning.lora_targets == "q_proj,v_proj"
    assert run.accelerate_launch_args == {"fsdp_transformer_layer_cls_to_wrap": "GraniteDecoderLayer"}
    assert run.model.attn_implementation == "sdpa"
    assert run.raw == {
        "remove_unused_columns": False,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    }


def test_the_models_name_is_its_folder_unless_one_is_given() -> None:
    assert parse(["--output_model_name", "mine"], environ={}).raw == {"output_dir": "./mine"}
    run = parse(["--output_model_name", "mine", "--output_dir", "there"], environ={})
    assert run.raw == {"output_dir": "there"}
    assert run.output_model_name == "mine"


def test_an_explicit_report_to_wins_over_the_project() -> None:
    assert parse(["--wandb_project", "p", "--report_to", "none"], environ={}).raw == {"report_to": "none"}


def test_environment_variables_merge_one_by_one(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("environment: {PT_HPU_LAZY_MODE: 1, WANDB_PROJECT: old}\n")
    run = parse([str(file), "--wandb_project", "new"], environ={})
    assert run.environment == {"PT_HPU_LAZY_MODE": "1", "WANDB_PROJECT": "new"}
    assert parse(["--environment", '{"A": "b"}', "--environment.C", "d"], environ={}).environment == {
        "A": "b",
        "C": "d",
    }


@pytest.mark.parametrize("word", ["--no_use_flash_attn", "--no-use-flash-attn"])
def test_a_switch_that_is_an_alias_has_a_no_form(word: str) -> None:
    assert parse([word], environ={}).model.attn_implementation == "sdpa"
    assert parse(["--no_train_vision"], environ={}).tuning.freeze_vision is True
