"""Names that users of other tools and of older transformers already type, in one table.

A row says what becomes of a name: it means a setting here (`Alias`), transformers 5 says it differently (`Restated`)
or has no such setting any more (`Dropped`), it is accepted without effect (`Ignored`), it says what others mean
(`Settled`), or it brings another setting with it (`Implied`). A new name is a new row. Names of an adapter's users are
declared by the adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from vlm_lora.config.declaration import Alias, declarations, renamed, switch
from vlm_lora.config.name_rows import TRANSFORMERS, Dropped, Ignored, Implied, OtherName, Restated, Settled
from vlm_lora.config.other_tools import CONFIG_DRIVEN, LLAMA_FACTORY, OTHER_TOOLS, TRL
from vlm_lora.config.values import spell

CONFIG_VARIABLES = ("VLM_LORA_CONFIG", "SFT_TRAINER_CONFIG_JSON_PATH")
"""Environment variables that may name the configuration file, the first that is set wins."""

SECRETS = frozenset({"token", "hub_token", "ms_hub_token", "om_hub_token"})
"""Keys whose values are never written or shown."""

_OCR = "OCR tuning over tar shards"
_TABULAR = "tabular workflow"


_LORA = (
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "lora_targets",
    "use_rslora",
    "use_dora",
    "lora_init",
    "train_fully",
    "new_tokens",
)
_NO_APEX = "only torch's own mixed precision is left; leave the key out"

_TABLE: tuple[OtherName, ...] = (
    *renamed(
        _OCR,
        model_name="model_name_or_path",
        epochs="num_train_epochs",
        grad_accum="gradient_accumulation_steps",
        num_workers="dataloader_num_workers",
        persistent_workers="dataloader_persistent_workers",
        prefetch_factor="dataloader_prefetch_factor",
        tar_pattern="dataset_name",
        eval_tar_pattern="validation_name",
        val_samples_per_epoch="max_eval_samples",
    ),
    Alias(
        name="system_prompt_file",
        canonical="system_prompt",
        users=_OCR,
        from_file=True,
        text="system_prompt, read from this file",
    ),
    switch(_OCR, "train_vision", "freeze_vision", true=False, false=True),
    *(
        Implied(name="train_vision", setting=setting, value=value, when=False, unless=_LORA)
        for setting, value in (("peft_method", "none"), ("freeze_embeddings", "true"), ("freeze_head", "true"))
    ),
    switch(_OCR, "no_eval", "do_eval", true=False, false=True),
    Settled(
        name="load_model_only",
        text="true: model_name_or_path = the checkpoint of --resume_from_checkpoint, which is not resumed",
        users=_OCR,
    ),
    *renamed(
        CONFIG_DRIVEN,
        training_data_path="dataset_name",
        validation_data_path="validation_name",
        dataset_text_field="messages_column",
        dataset_image_field="image_column",
        torch_dtype="dtype",
        r="lora_rank",
        target_modules="lora_targets",
    ),
    switch(CONFIG_DRIVEN, "use_flash_attn", "attn_implementation", true="flash_attention_2", false="sdpa"),
    *renamed(
        _TABULAR,
        base_model="model_name_or_path",
        num_epochs="num_train_epochs",
        batch_size="per_device_train_batch_size",
        max_seq_length="max_length",
        lora_r="lora_rank",
    ),
    switch(_TABULAR, "use_flash_attention", "attn_implementation", true="flash_attention_2", false="sdpa"),
    Alias(name="deepspeed_config", canonical="deepspeed", users=_TABULAR, empty_means_none=True),
    Alias(name="wandb_project", canonical="environment.WANDB_PROJECT", users=_TABULAR, empty_means_none=True),
    *renamed(LLAMA_FACTORY, image_min_pixels="min_pixels", image_max_pixels="max_pixels"),
    *renamed(TRL, use_bnb_nested_quant="bnb_4bit_use_double_quant"),
    *renamed(
        TRANSFORMERS,
        evaluation_strategy="eval_strategy",
        per_gpu_train_batch_size="per_device_train_batch_size",
        per_gpu_eval_batch_size="per_device_eval_batch_size",
        torchdynamo="torch_compile_backend",
        push_to_hub_model_id="hub_model_id",
        push_to_hub_token="hub_token",
    ),
    switch(TRANSFORMERS, "use_cpu", "backend", true="cpu", false=None),
    switch(TRANSFORMERS, "no_cuda", "backend", true="cpu", false=None),
    switch(TRANSFORMERS, "adafactor", "optim", true="adafactor", false=None),
    switch(TRANSFORMERS, "group_by_length", "train_sampling_strategy", true="group_by_length", false="random"),
    switch(TRANSFORMERS, "include_inputs_for_metrics", "include_for_metrics", true=["inputs"], false=None),
    *(
        Alias(
            name=f"activation_checkpointing{end}",
            canonical=f"gradient_checkpointing{end}",
            users=TRANSFORMERS,
            preferred=True,
        )
        for end in ("", "_kwargs")
    ),
    Implied(name="environment.WANDB_PROJECT", setting="report_to", value="wandb"),
    Implied(name="output_model_name", setting="output_dir", value="./{value}"),
    Restated(name="warmup_ratio", setting="warmup_steps", text="a warmup_steps below 1"),
    Restated(
        name="logging_dir",
        setting="environment.TENSORBOARD_LOGGING_DIR",
        text="environment.TENSORBOARD_LOGGING_DIR",
    ),
    Restated(
        name="include_tokens_per_second",
        setting="include_num_input_tokens_seen",
        text="include_num_input_tokens_seen",
    ),
    Restated(name="fsdp_min_num_params", setting="fsdp_config", text="fsdp_config: {min_num_params}"),
    Restated(
        name="fsdp_transformer_layer_cls_to_wrap",
        setting="fsdp_config",
        text="fsdp_config: {transformer_layer_cls_to_wrap}",
    ),
    Ignored(name="dataset_kwargs", keys=frozenset({"skip_prepare_dataset"}), users=CONFIG_DRIVEN),
    Dropped(
        name="save_safetensors",
        hint=bool,
        harmless=(True,),
        cure="this transformers writes safetensors only; leave the key out",
    ),
    Dropped(name="use_mps_device", hint=bool, any_value=True, cure=""),
    Dropped(
        name="jit_mode_eval", hint=bool, harmless=(False,), cure="evaluation by torch.jit is gone; use --torch_compile"
    ),
    Dropped(
        name="use_ipex",
        hint=bool,
        harmless=(False,),
        cure="its optimizations are part of PyTorch now; leave the key out",
    ),
    Dropped(
        name="use_legacy_prediction_loop",
        hint=bool,
        harmless=(False,),
        cure="there is one evaluation loop now; leave the key out",
    ),
    Dropped(name="tpu_metrics_debug", hint=bool, harmless=(False,), cure="there is no TPU backend; leave the key out"),
    Dropped(name="tpu_num_cores", hint=int | None, harmless=(None,), cure="there is no TPU backend; leave the key out"),
    Dropped(
        name="past_index",
        hint=int,
        harmless=(-1,),
        cure="vision-language models keep no past between batches; leave the key out",
    ),
    Dropped(name="fp16_opt_level", hint=str, harmless=("O1",), cure=_NO_APEX),
    Dropped(name="half_precision_backend", hint=str, harmless=("auto", "cpu_amp", "cuda_amp"), cure=_NO_APEX),
    Dropped(name="fp16_backend", hint=str, harmless=("auto", "cpu_amp", "cuda_amp"), cure=_NO_APEX),
    Dropped(
        name="mp_parameters",
        hint=str,
        harmless=("",),
        cure="SageMaker's model parallel library is not used; use --fsdp or --deepspeed",
    ),
    Dropped(
        name="ray_scope",
        hint=str | None,
        harmless=("last", None),
        cure="there is no hyperparameter search here; leave the key out",
    ),
    Dropped(
        name="load_in_8bit",
        hint=bool,
        harmless=(False,),
        cure="8-bit weights are not offered; type --load_in_4bit, which takes half of their memory, or leave it out",
    ),
    Dropped(
        name="push_to_hub_organization",
        hint=str | None,
        harmless=(None,),
        cure="write --hub_model_id ORGANIZATION/NAME",
    ),
    *OTHER_TOOLS,
)

IMPLIED = tuple(row for row in _TABLE if isinstance(row, Implied))
RESTATED: Mapping[str, Restated] = {row.name: row for row in _TABLE if isinstance(row, Restated)}
IGNORED: Mapping[str, Ignored] = {row.name: row for row in _TABLE if isinstance(row, Ignored)}
SETTLED: Mapping[str, Settled] = {row.name: row for row in _TABLE if isinstance(row, Settled)}
DROPPED: Mapping[str, Dropped] = {row.name: row for row in _TABLE if isinstance(row, Dropped)}

LAUNCHER_KEYS = frozenset({"world_size", "use_mpi", "use_deepspeed", "hostfile", "master_port", "use_env", "map_by"})
"""Flags of launchers, which stand before the name of the verb or script."""


@cache
def aliases() -> Mapping[str, Alias]:
    """Return every other name of a setting: those of the table, then those of the installed adapters."""
    declared = (alias for found in declarations().values() for alias in found.aliases)
    own = (row for row in _TABLE if isinstance(row, Alias))
    return {row.name: row for row in (*own, *declared)}


def canonical_name(name: str) -> str:
    """Return the name here for any name that is accepted, and an unknown name as it is."""
    return aliases()[name].canonical if name in aliases() else name


def shown(name: str, value: Any) -> str:
    """Write a key's value for a message, secrets hidden."""
    return "***" if canonical_name(name) in SECRETS else spell(value)


def describe_aliases() -> list[tuple[str, str, str]]:
    """Return (alias, what it means here, whose name it is) for every name in the tables, in table order."""
    described = [(row.name, _meaning(row), row.users) for row in aliases().values()]
    described += [(row.name, row.text, row.users) for row in RESTATED.values()]
    described += [
        (row.name, f"accepted without effect: {', '.join(sorted(row.keys))}", row.users) for row in IGNORED.values()
    ]
    described += [(row.name, row.text, row.users) for row in SETTLED.values()]
    described += [(row.name, _loss(row), row.users) for row in DROPPED.values()]
    return described


def _meaning(row: Alias) -> str:
    if row.text:
        return row.text
    if row.words is not None:
        meanings = [
            f"{spell(word)}: {'not set' if meaning is None else f'{row.canonical} = {spell(meaning)}'}"
            for word, meaning in row.words.items()
        ]
        return "; ".join([*meanings, f"otherwise {row.others}" if row.others else f"otherwise {row.canonical}"])
    if row.values is None:
        return f"{row.canonical}{_brought(row, None)}"
    parts = {
        spell(switch): "not set" if meaning is None else f"{row.canonical} = {spell(meaning)}{_brought(row, meaning)}"
        for switch, meaning in row.values.items()
    }
    return "; ".join(f"{switch}: {meaning}" for switch, meaning in parts.items())


def _brought(row: Alias, value: Any) -> str:
    """Say what a name brings with it, as far as it needs a certain value for that."""
    brought = [
        f"{each.setting} = {each.value}"
        for each in IMPLIED
        if each.name in (row.name, row.canonical) and each.when == value
    ]
    return f", {' and '.join(brought)} unless given" if brought else ""


def _loss(row: Dropped) -> str:
    if row.any_value:
        return "accepted without effect"
    values = [*map(spell, row.harmless), *([f"the value of {row.same_as}"] if row.same_as else [])]
    return (
        f"accepted without effect when {', '.join(values)}; otherwise {row.cure}" if values else f"refused: {row.cure}"
    )
