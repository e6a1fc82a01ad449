"""Names that users of other tools and of older transformers already type, as data.

Names with a counterpart here (`aliases`), names that transformers 5 dropped (`DROPPED`) or says differently
(`RESTATED`), and names that belong to launchers (`LAUNCHER_KEYS`). A new name is a new row. Names of an adapter's
users are declared by the adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from vlm_lora.config.declaration import Alias, declarations, renamed, switch
from vlm_lora.config.values import spell

CONFIG_VARIABLES = ("VLM_LORA_CONFIG", "SFT_TRAINER_CONFIG_JSON_PATH")
"""Environment variables that may name the configuration file, the first that is set wins."""

SECRETS = frozenset({"token", "hub_token"})
"""Keys whose values are never written or shown."""

_OCR = "OCR tuning over tar shards"
_CONFIG_DRIVEN = "config-driven tuning"
_TABULAR = "tabular workflow"
_TRANSFORMERS = "transformers"
_TRL = "TRL"


_ROWS: tuple[Alias, ...] = (
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
    switch(_OCR, "train_vision", "freeze_vision", true=False, false=True),
    switch(_OCR, "no_eval", "do_eval", true=False, false=True),
    *renamed(
        _CONFIG_DRIVEN,
        training_data_path="dataset_name",
        validation_data_path="validation_name",
        dataset_text_field="messages_column",
        dataset_image_field="image_column",
        torch_dtype="dtype",
        r="lora_rank",
        target_modules="lora_targets",
    ),
    switch(_CONFIG_DRIVEN, "use_flash_attn", "attn_implementation", true="flash_attention_2", false="sdpa"),
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
    *renamed(_TRL, use_bnb_nested_quant="bnb_4bit_use_double_quant"),
    *renamed(
        _TRANSFORMERS,
        evaluation_strategy="eval_strategy",
        per_gpu_train_batch_size="per_device_train_batch_size",
        per_gpu_eval_batch_size="per_device_eval_batch_size",
        torchdynamo="torch_compile_backend",
        push_to_hub_model_id="hub_model_id",
        push_to_hub_token="hub_token",
    ),
    switch(_TRANSFORMERS, "use_cpu", "backend", true="cpu", false=None),
    switch(_TRANSFORMERS, "no_cuda", "backend", true="cpu", false=None),
    switch(_TRANSFORMERS, "adafactor", "optim", true="adafactor", false=None),
    switch(_TRANSFORMERS, "group_by_length", "train_sampling_strategy", true="group_by_length", false="random"),
    switch(_TRANSFORMERS, "include_inputs_for_metrics", "include_for_metrics", true=["inputs"], false=None),
    *(
        Alias(
            name=f"activation_checkpointing{end}",
            canonical=f"gradient_checkpointing{end}",
            users=_TRANSFORMERS,
            preferred=True,
        )
        for end in ("", "_kwargs")
    ),
)


@cache
def aliases() -> Mapping[str, Alias]:
    """Return every other name of a setting: the rows above, then those of the installed adapters."""
    declared = (alias for found in declarations().values() for alias in found.aliases)
    return {row.name: row for row in (*_ROWS, *declared)}


IMPLIED: tuple[tuple[str, str, str], ...] = (
    ("environment.WANDB_PROJECT", "report_to", "wandb"),
    ("output_model_name", "output_dir", "./{value}"),
)
"""(setting, key, value): the key's value where the setting is given and the key is not."""

IGNORED: Mapping[str, frozenset[str]] = {"dataset_kwargs": frozenset({"skip_prepare_dataset"})}
"""Mappings that are accepted without effect (rows are always prepared here), with the keys they may hold."""


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A key that a class no longer has: which values lose nothing, and what to do about the others."""

    hint: Any
    harmless: tuple[Any, ...]
    """Values that ask for what happens anyway; empty where every value does."""
    cure: str
    users: str = f"{_TRANSFORMERS} 4"
    """Whose key it is."""


_NO_APEX = "only torch's own mixed precision is left; leave the key out"

DROPPED: Mapping[str, Dropped] = {
    "save_safetensors": Dropped(
        hint=bool, harmless=(True,), cure="this transformers writes safetensors only; leave the key out"
    ),
    "use_mps_device": Dropped(hint=bool, harmless=(), cure=""),
    "jit_mode_eval": Dropped(hint=bool, harmless=(False,), cure="evaluation by torch.jit is gone; use --torch_compile"),
    "use_ipex": Dropped(
        hint=bool, harmless=(False,), cure="its optimizations are part of PyTorch now; leave the key out"
    ),
    "use_legacy_prediction_loop": Dropped(
        hint=bool, harmless=(False,), cure="there is one evaluation loop now; leave the key out"
    ),
    "tpu_metrics_debug": Dropped(hint=bool, harmless=(False,), cure="there is no TPU backend; leave the key out"),
    "tpu_num_cores": Dropped(hint=int | None, harmless=(None,), cure="there is no TPU backend; leave the key out"),
    "past_index": Dropped(
        hint=int,
        harmless=(-1,),
        cure="vision-language models keep no past between batches; leave the key out",
    ),
    "fp16_opt_level": Dropped(hint=str, harmless=("O1",), cure=_NO_APEX),
    "half_precision_backend": Dropped(hint=str, harmless=("auto", "cpu_amp", "cuda_amp"), cure=_NO_APEX),
    "fp16_backend": Dropped(hint=str, harmless=("auto", "cpu_amp", "cuda_amp"), cure=_NO_APEX),
    "mp_parameters": Dropped(
        hint=str,
        harmless=("",),
        cure="SageMaker's model parallel library is not used; use --fsdp or --deepspeed",
    ),
    "ray_scope": Dropped(
        hint=str | None,
        harmless=("last", None),
        cure="there is no hyperparameter search here; leave the key out",
    ),
    "load_in_8bit": Dropped(
        hint=bool,
        harmless=(False,),
        cure="8-bit weights are not offered; type --load_in_4bit, which takes half of their memory, or leave it out",
    ),
    "load_model_only": Dropped(
        hint=bool,
        harmless=(False,),
        cure="to begin anew with a checkpoint's weights, type --model_name_or_path CHECKPOINT and no "
        "--resume_from_checkpoint",
        users=_OCR,
    ),
    "push_to_hub_organization": Dropped(
        hint=str | None, harmless=(None,), cure="write --hub_model_id ORGANIZATION/NAME"
    ),
}

RESTATED: Mapping[str, tuple[str, str]] = {
    "warmup_ratio": ("warmup_steps", "a warmup_steps below 1"),
    "logging_dir": ("environment.TENSORBOARD_LOGGING_DIR", "environment.TENSORBOARD_LOGGING_DIR"),
    "include_tokens_per_second": ("include_num_input_tokens_seen", "include_num_input_tokens_seen"),
    "fsdp_min_num_params": ("fsdp_config", "fsdp_config: {min_num_params}"),
    "fsdp_transformer_layer_cls_to_wrap": ("fsdp_config", "fsdp_config: {transformer_layer_cls_to_wrap}"),
}
"""Keys that transformers 5 says differently: what they become, and how that reads."""

LAUNCHER_KEYS = frozenset({"world_size", "use_mpi", "use_deepspeed", "hostfile", "master_port", "use_env", "map_by"})
"""Flags of launchers, which stand before the name of the verb or script."""


def canonical_name(name: str) -> str:
    """Return the name here for any name that is accepted, and an unknown name as it is."""
    return aliases()[name].canonical if name in aliases() else name


def shown(name: str, value: Any) -> str:
    """Write a key's value for a message, secrets hidden."""
    return "***" if canonical_name(name) in SECRETS else spell(value)


def describe_aliases() -> list[tuple[str, str, str]]:
    """Return (alias, what it means here, whose name it is) for every name in the tables, in table order."""
    described = [(row.name, _meaning(row), row.users) for row in aliases().values()]
    described += [(name, text, f"{_TRANSFORMERS} 4") for name, (_, text) in RESTATED.items()]
    described += [
        (name, f"accepted without effect: {', '.join(sorted(keys))}", _CONFIG_DRIVEN) for name, keys in IGNORED.items()
    ]
    described += [(name, _loss(row), row.users) for name, row in DROPPED.items()]
    return described


def _meaning(row: Alias) -> str:
    if row.values is None:
        implied = [f"; {key} = {value} unless given" for source, key, value in IMPLIED if source == row.canonical]
        return "".join([row.canonical, *implied])
    parts = {
        spell(switch): "not set" if meaning is None else f"{row.canonical} = {spell(meaning)}"
        for switch, meaning in row.values.items()
    }
    return "; ".join(f"{switch}: {meaning}" for switch, meaning in parts.items())


def _loss(row: Dropped) -> str:
    if not row.harmless:
        return "accepted without effect"
    return f"accepted without effect when {', '.join(map(spell, row.harmless))}; otherwise {row.cure}"
