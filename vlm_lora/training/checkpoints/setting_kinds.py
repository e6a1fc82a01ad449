"""What a change of each setting means to a run that goes on from a checkpoint: one table for all of them.

A setting that stands in no row changes the result: that is the safe side for a field that a newer transformers
brings. A test names such fields, so that they get a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from typing import Any

from vlm_lora.config.aliases import RESTATED, SECRETS, aliases, canonical_name
from vlm_lora.config.declaration import declarations
from vlm_lora.config.scoring import needs_answers


class Kind(Enum):
    """What happens where a setting differs from that of the checkpoint's run."""

    FREE = "free"
    """The log names it."""
    CHANGES_RESULT = "changes the result"
    """Refused unless `--allow_changed` names it, and then used."""
    NEVER = "never"
    """Refused: it would be another run."""
    NOT_RECORDED = "not recorded"
    """A secret, of one process alone, of another verb, or said by another setting of the record."""


GLOBAL_BATCH = "global_batch_size"
"""A setting of the record alone: rows of one step, over all processes and accumulation steps."""
WORLD_SIZE = "world_size"
"""A setting of the record alone: processes."""

VERSIONS, PATCH_VERSIONS = "versions", "patch_versions"
"""Of the record alone: minor and major versions of what computes, and all other versions."""
BASE_FILES, ADAPTER_FILES = "base_model_files", "adapter_files"
"""Of the record alone: what the files say that a run begins with."""
TRAINED_ROWS, OTHER_ROWS = "trained_rows", "validation_rows"
"""Of the record alone: what the rows say, and their order."""
FILE_CONTENTS = "file_contents"
"""Of the record alone: by setting, a SHA-256 of what the file says that it names."""
STANDS_ON = frozenset({VERSIONS, BASE_FILES, ADAPTER_FILES, TRAINED_ROWS})
"""What is no setting of a run and decides about its result all the same."""

SPLIT = ("per_device_train_batch_size", "gradient_accumulation_steps", WORLD_SIZE)
"""Factors of `GLOBAL_BATCH`. With one group of rows a global batch has the same rows however it is split."""

PART_RATES = tuple(f"{part}_learning_rate" for part in ("language", "vision", "projector", "embeddings", "head"))

PATHS = frozenset(
    {"dataset_name", "validation_name", "image_root", "task_file", "model_name_or_path", "output_dir", "cache_dir"}
)
"""The core's own settings that may name places."""

ROWS_DECIDE = frozenset({"dataset_name", "validation_name", "validation_fraction", "image_root"})
"""Settings that are free where the rows stay the same, such as another place of theirs or of their images."""
BASE_PLACE = "model_name_or_path"
"""Names where the base model or adapter lies: free where the files there are the same."""

_ROWS: Mapping[Kind, str] = {
    Kind.NOT_RECORDED: """
        token hub_token push_to_hub_token environment accelerate_launch_args
        local_rank _n_gpu logging_dir
        do_train do_predict overwrite_output_dir resume_from_checkpoint allow_changed list_checkpoints from_run
        accept_changed_files end_within
        dry_run dry_run_samples no_model dry_run_generate dry_run_max_new_tokens
        group_by_length
        per_gpu_train_batch_size per_gpu_eval_batch_size torchdynamo adafactor warmup_ratio
        activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing_kwargs
        push_to_hub_model_id push_to_hub_organization
    """,
    Kind.FREE: """
        max_steps num_train_epochs
        per_device_train_batch_size gradient_accumulation_steps world_size
        output_dir output_model_name tracking_uri run_name project cache_dir model_type debug
        skip_check max_bad_fraction
        logging_first_step logging_nan_inf_filter logging_steps logging_strategy
        log_level log_level_replica log_on_each_node disable_tqdm report_to
        trackio_bucket_id trackio_space_id trackio_static_space_id
        push_to_hub hub_model_id hub_revision hub_private_repo hub_strategy hub_always_push
        save_on_each_node save_only_model save_steps save_strategy save_total_limit save_safetensors
        enable_jit_checkpoint
        do_eval eval_accumulation_steps eval_delay eval_do_concat_batches eval_on_start eval_steps eval_strategy
        eval_use_gather_object batch_eval_metrics per_device_eval_batch_size prediction_loss_only
        include_for_metrics include_inputs_for_metrics include_num_input_tokens_seen include_tokens_per_second
        bf16_full_eval fp16_full_eval max_eval_samples predict_with_generate max_new_tokens skip_memory_metrics
        metrics generation_batch_size early_stopping_patience early_stopping_threshold
        cache_vision_features vision_cache_gb
        dataloader_num_workers dataloader_timeout dataloader_persistent_workers dataloader_pin_memory
        dataloader_prefetch_factor dataloader_multiprocessing_context
        ddp_timeout stall_timeout on_nonfinite nonfinite_limit length_column_name torch_empty_cache_steps
        image_cache image_cache_gb
        patch_versions validation_rows file_contents report_page report_images
    """,
    Kind.NEVER: """
        dataset_name dataset_config_name dataset_weights max_train_samples validation_fraction
        model_name_or_path model_revision image_backend min_pixels max_pixels image_size enable_thinking
        peft_method lora_rank lora_alpha lora_targets use_rslora use_dora lora_init train_fully new_tokens
        freeze_language freeze_vision freeze_projector freeze_embeddings freeze_head
        optim optim_args optim_target_modules
        base_model_files adapter_files trained_rows
    """,
    Kind.CHANGES_RESULT: """
        learning_rate language_learning_rate vision_learning_rate projector_learning_rate
        embeddings_learning_rate head_learning_rate
        weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm neftune_noise_alpha lora_dropout
        router_aux_loss_coef
        lr_scheduler_type lr_scheduler_kwargs warmup_steps
        global_batch_size auto_find_batch_size dataloader_drop_last dataloader_in_order ignore_data_skip
        train_sampling_strategy
        seed data_seed full_determinism
        validation_name split_seed streaming shuffle_buffer
        image_root image_column prompt_column default_prompt context_column response_column messages_column
        boxes_column ignore_columns ignore_keys choices box_format box_coordinates box_labels box_prompt
        page_column task_file tasks output_types task_seed answer_style system_prompt
        allow_urls max_image_pixels max_image_bytes on_bad_sample
        trust_remote_code dtype attn_implementation load_in_4bit bnb_4bit_quant_type bnb_4bit_compute_dtype
        bnb_4bit_use_double_quant
        max_length on_overflow static_shapes max_shapes packing pack_length
        eval_generate_samples
        load_best_model_at_end metric_for_best_model greater_is_better restore_callback_states_from_checkpoint
        backend bf16 fp16 tf32 gradient_checkpointing
        torch_compile torch_compile_backend torch_compile_mode
        accelerator_config parallelism_config deepspeed fsdp fsdp_config fsdp_min_num_params
        fsdp_transformer_layer_cls_to_wrap
        ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph
        average_tokens_across_devices label_names label_smoothing_factor remove_unused_columns
        liger_kernel_config use_liger_kernel use_cache
        fp16_backend fp16_opt_level half_precision_backend jit_mode_eval mp_parameters past_index ray_scope
        tpu_metrics_debug tpu_num_cores use_ipex use_legacy_prediction_loop use_mps_device
        versions
    """,
}


@cache
def kinds() -> Mapping[str, Kind]:
    """Return the kind of every setting that is known: the rows above, and the flags of the installed adapters."""
    found = {name: kind for kind, names in _ROWS.items() for name in names.split()}
    for declaration in declarations().values():
        found |= {
            flag: Kind.FREE if flag in declaration.free_flags else Kind.CHANGES_RESULT for flag in declaration.flags
        }
    # Another name of a setting that is recorded under its own.
    return {**dict.fromkeys(aliases(), Kind.NOT_RECORDED), **found}


@cache
def adapters_flags() -> frozenset[str]:
    """Return the settings that installed adapters add to those of the core and the trainer."""
    return frozenset().union(*(declaration.flags for declaration in declarations().values()))


@cache
def file_settings() -> frozenset[str]:
    """Return the settings that name one file, or a folder for it: compared by what it says."""
    return frozenset({"task_file"}).union(*(declaration.path_flags for declaration in declarations().values()))


@cache
def path_settings() -> frozenset[str]:
    """Return the settings that may name places: compared as absolute paths."""
    return PATHS.union(*(declaration.path_flags for declaration in declarations().values()))


_STANDS_FOR: Mapping[str, str] = dict.fromkeys(SPLIT, GLOBAL_BATCH)

MATTERS: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    **dict.fromkeys(
        (
            "lora_rank",
            "lora_alpha",
            "lora_dropout",
            "lora_targets",
            "use_rslora",
            "use_dora",
            "train_fully",
            "new_tokens",
        ),
        lambda settings: settings.get("peft_method") == "lora",
    ),
    **dict.fromkeys(
        ("freeze_language", "freeze_vision", "freeze_projector", "freeze_embeddings", "freeze_head"),
        lambda settings: settings.get("peft_method") == "none",
    ),
    **dict.fromkeys(
        ("bnb_4bit_quant_type", "bnb_4bit_compute_dtype", "bnb_4bit_use_double_quant"),
        lambda settings: bool(settings.get("load_in_4bit")),
    ),
    **dict.fromkeys(
        ("metric_for_best_model", "greater_is_better"),
        lambda settings: (
            bool(settings.get("load_best_model_at_end")) or settings.get("lr_scheduler_type") == "reduce_lr_on_plateau"
        ),
    ),
    **dict.fromkeys(
        ("ddp_backend", "ddp_broadcast_buffers", "ddp_bucket_cap_mb", "ddp_find_unused_parameters", "ddp_static_graph"),
        lambda settings: settings.get(WORLD_SIZE, 1) > 1,
    ),
    "eval_generate_samples": lambda settings: needs_answers(settings.get("metric_for_best_model")),
    "average_tokens_across_devices": lambda settings: settings.get(WORLD_SIZE, 1) > 1,
    "fsdp_config": lambda settings: bool(settings.get("fsdp")),
    "half_precision_backend": lambda settings: bool(settings.get("bf16") or settings.get("fp16")),
    **dict.fromkeys(
        ("validation_fraction", "split_seed"),
        lambda settings: settings.get("validation_name") is None and not settings.get("streaming"),
    ),
    "shuffle_buffer": lambda settings: bool(settings.get("streaming")),
    "max_shapes": lambda settings: bool(settings.get("static_shapes")),
    "pack_length": lambda settings: bool(settings.get("packing")),
}
"""Settings that matter with others alone: where a run has these otherwise, nothing is compared."""


def kind_of(name: str) -> Kind:
    """Return what a change of a setting means; of one that the table does not know, that it changes the result."""
    return kinds().get(name, Kind.NOT_RECORDED if name in SECRETS else Kind.CHANGES_RESULT)


def setting_of(name: str) -> str:
    """Return the record's setting for any name that a flag or key may have."""
    plain = name.strip().lstrip("-").replace("-", "_")
    restated = RESTATED[plain].setting if plain in RESTATED else plain
    known = canonical_name(restated)
    return _STANDS_FOR.get(known, known)
