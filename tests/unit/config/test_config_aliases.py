"""Every other name of a setting means what its users mean by it."""

import json
from pathlib import Path
from typing import Any

import pytest

from vlm_lora.config.aliases import DROPPED, IGNORED, RESTATED, SETTLED, aliases, describe_aliases
from vlm_lora.config.fields import flatten, own_fields
from vlm_lora.config.other_tools import OTHER_TOOLS
from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.sources import parse
from vlm_lora.errors import ConfigError

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
    ("system_prompt_file", __file__, {"system_prompt": Path(__file__).read_text(encoding="utf-8").rstrip("\n")}),
    (
        "train_vision",
        "true",
        {"freeze_vision": False, "peft_method": "none", "freeze_embeddings": True, "freeze_head": True},
    ),
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
    others = {row.name for row in OTHER_TOOLS}
    assert {alias for alias, _, _ in MEANINGS} == set(aliases()) - others, "those of test_other_tools.py"


@pytest.mark.parametrize("row", aliases().values(), ids=lambda row: row.name)
def test_no_alias_hides_a_setting_or_chains(row: Any) -> None:
    assert row.name not in own_fields()
    assert row.canonical not in aliases()


def test_every_name_is_described_once() -> None:
    names = [alias for alias, _, _ in describe_aliases()]
    assert len(names) == len(set(names))
    assert set(names) == {*aliases(), *DROPPED, *RESTATED, *IGNORED, *SETTLED}
    assert (
        "use_flash_attn",
        "true: attn_implementation = flash_attention_2; false: attn_implementation = sdpa",
    ) in [(alias, meaning) for alias, meaning, _ in describe_aliases()]


def test_what_an_alias_implies_is_described() -> None:
    meanings = {alias: meaning for alias, meaning, _ in describe_aliases()}
    assert meanings["wandb_project"] == "environment.WANDB_PROJECT, report_to = wandb unless given"
    assert meanings["train_vision"] == (
        "true: freeze_vision = false, peft_method = none and freeze_embeddings = true and freeze_head = true unless "
        "given; false: freeze_vision = true"
    )
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


def test_the_ocr_tools_switch_for_the_tower_stands_for_its_full_weights() -> None:
    tuning = parse(["--train-vision"], environ={}).tuning
    assert [part for part, frozen in tuning.frozen.items() if not frozen] == ["language", "vision", "projector"]
    assert parse(["--train-vision", "--freeze_head", "false"], environ={}).tuning.frozen["head"] is False
    ours = parse(["--peft_method", "none", "--freeze_vision", "false"], environ={}).tuning
    assert not any(ours.frozen.values()), "our own name for it brings nothing else"
    assert parse(["--no_train_vision"], environ={}).tuning == RunConfig().tuning
    for words in (["--lora_rank", "8"], ["--peft_method", "lora"]):
        with pytest.raises(ConfigError, match="--train_vision are for --peft_method none"):
            parse(["--train-vision", *words], environ={}).tuning.refuse_what_has_no_effect()


CHECKPOINT = ["--model-name", "m", "--resume-from-checkpoint", "out/checkpoint-3"]


@pytest.mark.parametrize(
    ("words", "model", "raw"),
    [
        ([*CHECKPOINT, "--load-model-only"], "out/checkpoint-3", {}),
        ([*CHECKPOINT, "--load-model-only", "False"], "m", {"resume_from_checkpoint": "out/checkpoint-3"}),
        (CHECKPOINT, "m", {"resume_from_checkpoint": "out/checkpoint-3"}),
        (["--model-name", "m", "--load-model-only"], "m", {}),
        (
            ["--model-name", "m", "--load-model-only", "--resume_from_checkpoint", "false"],
            "m",
            {"resume_from_checkpoint": "false"},
        ),
    ],
)
def test_a_checkpoints_weights_alone(words: list[str], model: str, raw: dict[str, Any]) -> None:
    run = parse(words, environ={})
    assert (run.model.model_name_or_path, dict(run.raw)) == (model, raw)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--load-model-only", "--resume_from_checkpoint"], "must be named: type --resume_from_checkpoint DIR/checkpo"),
        (["--load-model-only", "maybe"], "--load_model_only maybe: must be true or false"),
    ],
)
def test_a_checkpoint_that_is_not_named_is_asked_for(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse([*words, *([] if "--resume_from_checkpoint" in words else CHECKPOINT)], environ={})


def test_a_system_prompt_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "system_prompt.txt"
    file.write_text("  Read.\nÄ\n\n", encoding="utf-8")
    assert parse(["--system-prompt-file", str(file)], environ={}).data.system_prompt == "  Read.\nÄ"
    for words, said in (
        (["--system_prompt_file", str(file), "--system_prompt", "Else."], "contradict each other"),
        (["--system_prompt_file", str(tmp_path / "none.txt")], r"none\.txt: must be a file with .*No such file"),
        (["--system_prompt_file"], "must be the name of a file"),
    ):
        with pytest.raises(ConfigError, match=said):
            parse(words, environ={})
    for content, said in ((b" \n", "must be a file that is not empty"), (b"\xff", "not UTF-8")):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=said):
            parse(["--system_prompt_file", str(file)], environ={})


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
