"""Training arguments that the project decides, and those that it cannot honour."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from vlm_lora.config.scoring import less_is_better
from vlm_lora.errors import ConfigError, Refusals

DEFAULT_ARGUMENTS = {
    # transformers' default differs between versions: nothing is reported unless asked for.
    "report_to": "none",
    # A NaN must be seen, not smoothed over.
    "logging_nan_inf_filter": False,
    # transformers' 500 shows nothing of a short run.
    "logging_steps": 10,
}
"""Where the project's default differs from transformers'; a flag wins."""

LORA_ARGUMENTS = {"learning_rate": 1e-4}
"""LoRA wants about ten times the learning rate of full weights (Schulman 2025, "LoRA Without Regret")."""

FORCED_ARGUMENTS = {
    # The collator takes conversations and makes every column itself.
    "remove_unused_columns": False,
    "label_names": ["labels"],
    "average_tokens_across_devices": True,
}
"""What the project's collator and loss stand on, whatever was set."""

CHECKPOINTING = ("gradient_checkpointing", "gradient_checkpointing_kwargs")
"""Not passed on: the core checkpoints the language model alone, the trainer's own switch everything."""

UNSUPPORTED = {
    "label_smoothing_factor": ((0, 0.0), "the loss is the plain negative log-likelihood of the answer"),
    "length_column_name": (("length",), "how long rows are is known from the check before training, not from a column"),
    "do_predict": ((False,), "type --do_eval --predict_with_generate for generated answers"),
    "gradient_checkpointing_kwargs": (
        (None, {"use_reentrant": False}),
        "checkpointing is non-reentrant, as frozen parts need it",
    ),
    "activation_checkpointing_kwargs": ((None, {"use_reentrant": False}), "checkpointing is non-reentrant"),
    "average_tokens_across_devices": ((True,), "the loss is normalised over all processes"),
}
"""Fields that would be ignored or would fail later: the values that are fine, and why no other is."""


LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "seed": 0,
    "data_seed": 0,
    "dataloader_num_workers": 0,
    "ddp_timeout": 1,
}
"""Fields that transformers takes at any value and that fail later below these."""


def default_arguments(arguments_class: type, values: Mapping[str, Any], *, lora: bool) -> dict[str, Any]:
    """Return the project's defaults for a backend's arguments class.

    transformers 5 reads TensorBoard's folder from TENSORBOARD_LOGGING_DIR; before, it is a field. Of a metric to choose
    the best checkpoint by, transformers takes the largest as best unless its name ends in "loss"; of perplexity and
    error rates the least is.

    Args:
        arguments_class: the backend's.
        values: the arguments that were set.
        lora: whether LoRA is tuned.
    """
    folder = os.environ.get("TENSORBOARD_LOGGING_DIR")
    has_field = any(field.name == "logging_dir" for field in fields(arguments_class))
    events = {"logging_dir": folder} if folder and has_field else {}
    metric = values.get("metric_for_best_model")
    better = {} if metric is None else {"greater_is_better": not less_is_better(metric)}
    return {**DEFAULT_ARGUMENTS, **(LORA_ARGUMENTS if lora else {}), **events, **better}


def check_arguments(values: Mapping[str, Any]) -> None:
    """Refuse values that training would ignore or fail on, before the arguments are built from them.

    Raises:
        ConfigError: names each field, its value, the reason and what is allowed.
    """
    refused = Refusals()
    for fault in _faults(values):
        refused.note(ConfigError(fault))
    refused.raise_any()


def _faults(values: Mapping[str, Any]) -> Iterator[str]:
    for name, least in LEAST.items():
        value = values.get(name)
        if value is not None and value < least:
            yield f"--{name} {value}: must be {least} or more."
    if (values.get("learning_rate") or 0) < 0:
        yield f"--learning_rate {values['learning_rate']}: must be 0 or more, for example 1e-4."
    if values.get("dataloader_persistent_workers") and not values.get("dataloader_num_workers"):
        yield (
            "--dataloader_persistent_workers true: without workers (--dataloader_num_workers 0) none can persist. "
            "Leave it out, or give a number of workers, such as --dataloader_num_workers 4."
        )
    for name, (allowed, reason) in UNSUPPORTED.items():
        value = values.get(name, allowed[0])
        if value not in allowed:
            yield f"--{name} {value} cannot be used: {reason}. Leave it out, or give {allowed[-1]}."
