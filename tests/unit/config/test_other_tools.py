"""What users of TRL, LLaMA-Factory, ms-swift, axolotl and fms-hf-tuning type: every row of the table, and no hint that
misleads."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from vlm_lora.config.aliases import DROPPED, RESTATED, SETTLED, aliases, shown
from vlm_lora.config.argument_fields import arguments_like
from vlm_lora.config.declaration import Alias, declarations
from vlm_lora.config.early import check_keys
from vlm_lora.config.fields import flatten, own_fields
from vlm_lora.config.name_rows import Dropped
from vlm_lora.config.other_tools import FAMILIES, OTHER_TOOLS
from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.sources import from_settings, parse
from vlm_lora.config.values import MismatchError, convert
from vlm_lora.errors import ConfigError

DROPPED_ROWS = [row for row in OTHER_TOOLS if isinstance(row, Dropped)]
ALIAS_ROWS = [row for row in OTHER_TOOLS if isinstance(row, Alias)]
VARIABLE = "environment."

# name, value, what it sets; nothing where it says what happens anyway
MEANINGS: Mapping[str, list[tuple[Any, dict[str, Any]]]] = {
    "dataset": [("d.json", {"dataset_name": "d.json"}), (["a.json", "b.json"], {"dataset_name": "a.json + b.json"})],
    "eval_dataset": [("d.json", {"validation_name": "d.json"})],
    "shuffle_buffer_size": [("7", {"shuffle_buffer": 7})],
    "mlflow_tracking_uri": [("u", {"environment": {"MLFLOW_TRACKING_URI": "u"}})],
    "dataset_config": [("en", {"dataset_config_name": "en"})],
    "dataset_streaming": [("true", {"streaming": True})],
    "test_split_size": [("0.2", {"validation_fraction": 0.2})],
    "use_peft": [("true", {}), ("false", {"peft_method": "none"})],
    "cutoff_len": [("512", {"max_length": 512})],
    "model_max_length": [("512", {"max_length": 512})],
    "media_dir": [("i", {"image_root": "i"})],
    "max_samples": [("5", {"max_train_samples": 5})],
    "buffer_size": [("7", {"shuffle_buffer": 7})],
    "val_size": [("0.2", {"validation_fraction": 0.2})],
    "default_system": [("s", {"system_prompt": "s"})],
    "freeze_vision_tower": [("false", {"freeze_vision": False})],
    "freeze_multi_modal_projector": [("true", {"freeze_projector": True})],
    "freeze_language_model": [("true", {"freeze_language": True})],
    "moe_aux_loss_coef": [("0.1", {"router_aux_loss_coef": 0.1})],
    "quantization_type": [("fp4", {"bnb_4bit_quant_type": "fp4"})],
    "double_quantization": [("true", {"bnb_4bit_use_double_quant": True})],
    "early_stopping_steps": [("3", {"early_stopping_patience": 3}), (None, {})],
    "enable_liger_kernel": [("true", {"use_liger_kernel": "true"})],
    "hf_hub_token": [("t", {"token": "t"})],
    "finetuning_type": [("lora", {}), ("full", {"peft_method": "none"})],
    "lora_target": [("all", {}), ("q_proj,v_proj", {"lora_targets": "q_proj,v_proj"})],
    "quantization_bit": [(4, {"load_in_4bit": True}), (None, {})],
    "flash_attn": [
        ("auto", {}),
        ("disabled", {"attn_implementation": "eager"}),
        ("sdpa", {"attn_implementation": "sdpa"}),
        ("fa2", {"attn_implementation": "flash_attention_2"}),
    ],
    "neat_packing": [("true", {"packing": True}), ("false", {})],
    "packing_length": [("4096", {"pack_length": 4096})],
    "sample_packing": [("true", {"packing": True}), ("false", {})],
    "disable_gradient_checkpointing": [("true", {"gradient_checkpointing": False})],
    "disable_shuffling": [("true", {"train_sampling_strategy": "sequential"})],
    "model": [("m", {"model_name_or_path": "m"})],
    "val_dataset": [("d.json", {"validation_name": "d.json"})],
    "split_dataset_ratio": [("0.2", {"validation_fraction": 0.2})],
    "system": [("s", {"system_prompt": "s"})],
    "attn_impl": [
        ("flash_attn", {"attn_implementation": "flash_attention_2"}),
        ("sdpa", {"attn_implementation": "sdpa"}),
    ],
    "freeze_llm": [("true", {"freeze_language": True})],
    "freeze_vit": [("false", {"freeze_vision": False})],
    "freeze_aligner": [("true", {"freeze_projector": True})],
    "vit_lr": [("1e-6", {"vision_learning_rate": 1e-6})],
    "aligner_lr": [("1e-6", {"projector_learning_rate": 1e-6})],
    "target_regex": [("q.*", {"lora_targets": "q.*"})],
    "eval_limit": [("5", {"max_eval_samples": 5})],
    "resume_only_model": [("true", {})],
    "tuner_type": [("full", {"peft_method": "none"}), ("lora", {})],
    "train_type": [("full", {"peft_method": "none"}), ("lora", {})],
    "init_weights": [("true", {}), ("gaussian", {"lora_init": "gaussian"}), (None, {})],
    "init_lora_weights": [("true", {}), ("gaussian", {"lora_init": "gaussian"}), (None, {})],
    "peft_init_lora_weights": [("true", {}), ("gaussian", {"lora_init": "gaussian"}), (None, {})],
    "quant_bits": [("4", {"load_in_4bit": True}), (None, {})],
    "truncation_strategy": [("delete", {"on_overflow": "drop"}), ("raise", {}), (None, {})],
    "train_dataloader_shuffle": [("false", {"train_sampling_strategy": "sequential"})],
    "sequence_len": [("512", {"max_length": 512})],
    "micro_batch_size": [("2", {"per_device_train_batch_size": "2"})],
    "eval_batch_size": [("2", {"per_device_eval_batch_size": "2"})],
    "optimizer": [("adamw_torch", {"optim": "adamw_torch"})],
    "lr_scheduler": [("cosine", {"lr_scheduler_type": "cosine"})],
    "val_set_size": [("0.2", {"validation_fraction": 0.2})],
    "embedding_lr": [("1e-6", {"embeddings_learning_rate": 1e-6})],
    "peft_use_dora": [("true", {"use_dora": True})],
    "peft_use_rslora": [("true", {"use_rslora": True})],
    "default_system_message": [("s", {"system_prompt": "s"})],
    "eval_max_new_tokens": [("9", {"max_new_tokens": 9})],
    "wandb_name": [("n", {"run_name": "n"})],
    "mlflow_run_name": [("n", {"run_name": "n"})],
    "wandb_run_id": [("i", {"environment": {"WANDB_RUN_ID": "i"}})],
    "wandb_entity": [("e", {"environment": {"WANDB_ENTITY": "e"}})],
    "wandb_mode": [("offline", {"environment": {"WANDB_MODE": "offline"}})],
    "wandb_watch": [("all", {"environment": {"WANDB_WATCH": "all"}})],
    "wandb_log_model": [("end", {"environment": {"WANDB_LOG_MODEL": "end"}})],
    "mlflow_experiment_name": [("e", {"environment": {"MLFLOW_EXPERIMENT_NAME": "e"}})],
    "adapter": [("lora", {}), ("qlora", {}), (None, {"peft_method": "none"}), ("", {"peft_method": "none"})],
    "excess_length_strategy": [("drop", {"on_overflow": "drop"}), ("raise", {}), (None, {})],
    "flash_attention": [("true", {"attn_implementation": "flash_attention_2"}), ("false", {})],
    "sdp_attention": [("true", {"attn_implementation": "sdpa"}), ("false", {})],
    "eager_attention": [("true", {"attn_implementation": "eager"}), ("false", {})],
    "use_wandb": [("true", {"report_to": "wandb"}), ("false", {})],
    "use_mlflow": [("true", {"report_to": "mlflow"}), ("false", {})],
    "use_comet": [("true", {"report_to": "comet_ml"}), ("false", {})],
    "use_trackio": [("true", {"report_to": "trackio"}), ("false", {})],
    "use_tensorboard": [("true", {"report_to": "tensorboard"}), ("false", {})],
    "lora_target_linear": [("true", {"lora_targets": "all-linear"}), ("false", {})],
    "bfloat16": [("true", {"dtype": "bfloat16"}), ("false", {})],
    "float16": [("true", {"dtype": "float16"}), ("false", {})],
    "float32": [("true", {"dtype": "float32"}), ("false", {})],
    "auto_resume_from_checkpoints": [("true", {"resume_from_checkpoint": True}), ("false", {})],
    "dataset_conversation_field": [("messages", {"messages_column": "messages"})],
    "flash_attn_implementation": [("sdpa", {"attn_implementation": "sdpa"})],
    "mlflow_experiment": [("e", {"environment": {"MLFLOW_EXPERIMENT_NAME": "e"}})],
    "clearml_project": [("p", {"environment": {"CLEARML_PROJECT": "p"}})],
    "clearml_task": [("t", {"environment": {"CLEARML_TASK": "t"}})],
    "trackers": [
        (["file_logger", "mlflow"], {"report_to": ["mlflow"]}),
        (["file_logger"], {}),
        ("none", {}),
        ("clearml", {"report_to": "clearml"}),
    ],
}


def changed(run: RunConfig) -> dict[str, Any]:
    defaults = flatten(RunConfig())
    return {name: value for name, value in flatten(run).items() if value != defaults[name]} | dict(run.raw)


@pytest.mark.parametrize("name", MEANINGS)
def test_a_name_sets_what_it_means_and_nothing_else(name: str) -> None:
    for value, meaning in MEANINGS[name]:
        assert changed(from_settings({name: value}, environ={})) == meaning
        if isinstance(value, str) and value:
            assert changed(parse([f"--{name}={value}"], environ={})) == meaning


def test_every_name_of_the_table_is_tried() -> None:
    assert set(MEANINGS) == {row.name for row in ALIAS_ROWS}
    assert {row.name for row in ALIAS_ROWS} <= set(aliases())
    assert {row.name for row in DROPPED_ROWS} <= set(DROPPED)


def test_a_name_stands_in_one_row_and_hides_no_setting() -> None:
    counts = Counter(row.name for row in OTHER_TOOLS)
    assert [name for name, count in counts.items() if count > 1] == []
    arguments = arguments_like("auto")
    assert arguments is not None
    adapters = {flag for declared in declarations().values() for flag in declared.flags}
    settings = {*own_fields(), *(field.name for field in fields(arguments)), *adapters, *RESTATED, *SETTLED}
    assert [name for name in counts if name in settings] == []


def refusal(settings: Mapping[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        check_keys(from_settings(settings, environ={}))
    return str(caught.value)


OTHERS: tuple[Any, ...] = (True, False, "other", 7, 0.37, ["other"], {"a": 1})


def another(row: Dropped) -> Any:
    """Return a value of a row's type that it does not accept."""
    for value in OTHERS:
        try:
            typed = convert(value, row.hint)
        except MismatchError:
            continue
        if typed not in row.harmless:
            return value
    raise AssertionError(row.name)


def test_names_without_meaning_here_are_accepted_where_they_say_what_happens_anyway() -> None:
    for row in DROPPED_ROWS:
        for value in OTHERS if row.any_value else row.harmless:
            check_keys(from_settings({row.name: value}, environ={}))
    for text in ("null", "None", "[]", ""):
        check_keys(from_settings({"target_parameters": text} if text != "[]" else {"tokens": text}, environ={}))


def test_any_other_value_is_one_line_that_says_what_to_type() -> None:
    for row in DROPPED_ROWS:
        if row.any_value:
            continue
        value = another(row)
        assert refusal({row.name: value}) == f"--{row.name} {shown(row.name, value)}: {row.cure}."
        assert "\n" not in row.cure
    for alias in ALIAS_ROWS:
        if alias.others:
            said = refusal({alias.name: "other"})
            assert re.fullmatch(rf"--{alias.name} other: must be .*; {re.escape(alias.others)}\.", said), said


def test_what_is_told_to_be_typed_exists() -> None:
    arguments = arguments_like("auto")
    assert arguments is not None
    known = {*own_fields(), *(field.name for field in fields(arguments)), *aliases()}
    told = [row.cure for row in DROPPED_ROWS] + [row.others for row in ALIAS_ROWS] + list(FAMILIES.values())
    typed = {flag for text in told for flag in re.findall(r"--(\w+)", text)}
    assert len(typed) > 20
    assert typed - known == set()
    for text in filter(None, told):
        assert "leave it out" in text or "--" in text or "`vlm-lora" in text, text


def test_secrets_are_not_shown() -> None:
    assert "abc" not in refusal({"ms_hub_token": "abc"})


@pytest.mark.parametrize(
    "name",
    ["galore_rank", "adalora_beta1", "dpo_beta", "swanlab_project", "vllm_gpu_util", "fsdp_version", "vera_rank"],
)
def test_names_of_other_methods_are_told_what_to_do_by_how_they_begin(name: str) -> None:
    beginning = next(each for each in FAMILIES if name.startswith(each))
    assert refusal({name: "1"}) == f"--{name}: {FAMILIES[beginning]}."


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lerning_rate", "Did you mean 'learning_rate'?"),
        ("lora_rnk", "Did you mean 'lora_rank'?"),
        ("num_epoch", "Did you mean 'num_epochs'?"),
        ("max_len", "Did you mean 'max_length'?"),
        ("save_step", "Did you mean 'save_steps'?"),
        ("use_pefr", "Did you mean 'use_peft'?"),
        ("use_ipx", "`vlm-lora train --help_all` lists every key."),
        ("callbacks", "`vlm-lora train --help_all` lists every key."),
        ("use_swift_lra", "`vlm-lora train --help_all` lists every key."),
    ],
)
def test_a_hint_is_for_slips_alone_and_never_of_a_name_that_is_gone(name: str, said: str) -> None:
    assert refusal({name: "1"}) == f"--{name} is not a known key. {said}"


def test_what_misled_before() -> None:
    assert changed(parse(["--use_peft"], environ={})) == {}
    assert changed(parse(["--dataset", "d.json"], environ={})) == {"dataset_name": "d.json"}
    said = refusal({"save_model_dir": "there", "output_dir": "here"})
    assert said.startswith("--save_model_dir there: the trained model is saved in --output_dir itself")
    check_keys(from_settings({"save_model_dir": "here", "output_dir": "here"}, environ={}))


def test_a_tokenizer_of_the_model_itself_is_what_happens() -> None:
    check_keys(from_settings({"model_name_or_path": "m", "tokenizer_name_or_path": "m"}, environ={}))
    assert "the tokenizer in the folder" in refusal({"model_name_or_path": "m", "tokenizer_name_or_path": "t"})


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        ("--freeze_vit true --freeze_aligner true", True),
        ("--freeze_llm", False),
        ("--freeze_vit false", False),
        ("--freeze_vit false --lora_targets language,vision", True),
        ("--freeze_aligner --lora_targets all", False),
        ("--freeze_llm --lora_targets vision", True),
        ("--freeze_embeddings --freeze_head --lora_targets all", True),
        ("--freeze_aligner --lora_targets q_proj", False),
    ],
)
def test_frozen_parts_next_to_lora_may_say_what_happens(words: str, allowed: bool) -> None:
    tuning = parse(words.split(), environ={}).tuning
    if allowed:
        tuning.refuse_what_has_no_effect()
        return
    with pytest.raises(ConfigError, match="are for --peft_method none"):
        tuning.refuse_what_has_no_effect()


FILES: Mapping[str, str] = {
    "config-driven": """
        model_name_or_path: m
        tokenizer_name_or_path: m
        training_data_path: d.jsonl
        output_dir: out
        save_model_dir: out
        dataset_conversation_field: messages
        packing: false
        enable_reduce_loss_sum: false
        do_dataprocessing_only: false
        bias: "none"
        modules_to_save: []
        embedding_size_multiple_of: 1
        trackers: [file_logger]
        chat_template: null
        add_special_tokens: null
        data_config_path: null
        use_flash_attn: true
        flash_attn_implementation: flash_attention_2
        peft_method: lora
        r: 8
    """,
    "LLaMA-Factory": """
        model_name_or_path: m
        image_max_pixels: 262144
        video_max_pixels: 16384
        trust_remote_code: true
        stage: sft
        do_train: true
        finetuning_type: lora
        lora_rank: 8
        lora_target: all
        dataset: d.json
        cutoff_len: 2048
        max_samples: 1000
        overwrite_cache: true
        preprocessing_num_workers: 16
        dataloader_num_workers: 4
        output_dir: out
        logging_steps: 10
        overwrite_output_dir: true
        save_only_model: false
        report_to: none
        per_device_train_batch_size: 1
        learning_rate: 1.0e-4
        lr_scheduler_type: cosine
        warmup_ratio: 0.1
        bf16: true
        ddp_timeout: 180000000
        resume_from_checkpoint: null
    """,
    "axolotl": """
        base_model: m
        processor_type: AutoProcessor
        skip_prepare_dataset: true
        remove_unused_columns: false
        sample_packing: false
        chat_template: tokenizer_default
        dataset_prepared_path: last_run_prepared
        val_set_size: 0.01
        output_dir: out
        adapter: lora
        lora_model_dir:
        sequence_len: 8192
        pad_to_sequence_len: false
        lora_r: 32
        lora_alpha: 16
        lora_dropout: 0.05
        wandb_project:
        wandb_entity:
        wandb_name:
        gradient_accumulation_steps: 4
        micro_batch_size: 1
        num_epochs: 1
        optimizer: adamw_torch
        lr_scheduler: cosine
        learning_rate: 0.0002
        bf16: true
        gradient_checkpointing: true
        flash_attention: true
        eager_attention:
        special_tokens:
        weight_decay: 0.0
    """,
}
"""Keys as such files have them, each of which says what happens here or has a name of ours."""


@pytest.mark.parametrize("tool", FILES)
def test_a_file_of_another_tool_is_read_as_it_is(tool: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("\n".join(line.strip() for line in FILES[tool].splitlines()), encoding="utf-8")
    run = parse([str(file)], environ={})
    check_keys(run)
    assert (run.model.model_name_or_path, run.raw["output_dir"], run.tuning.peft_method) == ("m", "out", "lora")


def test_everything_wrong_in_a_file_is_said_at_once() -> None:
    said = refusal({"eval_packing": True, "use_dft_loss": True, "template": "qwen2_vl", "galore_rank": 8})
    for name in ("eval_packing", "use_dft_loss", "template", "galore_rank"):
        assert f"--{name}" in said
