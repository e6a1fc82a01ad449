"""Training arguments that the project decides, and those that it cannot honour."""

from __future__ import annotations

from typing import Any

from vlm_lora.errors import ConfigError

DEFAULT_ARGUMENTS = {
    # transformers' default differs between versions: nothing is reported unless asked for.
    "report_to": "none",
    # A NaN must be seen, not smoothed over.
    "logging_nan_inf_filter": False,
}
"""Where the project's default differs from transformers'; a flag wins."""

FORCED_ARGUMENTS = {
    # The collator takes conversations and makes every column itself.
    "remove_unused_columns": False,
    "label_names": ["labels"],
}
"""What the project's collator and loss stand on, whatever was typed."""

CHECKPOINTING = ("gradient_checkpointing", "gradient_checkpointing_kwargs")
"""Not passed on: the core checkpoints the language model alone, the trainer's own switch everything."""

UNSUPPORTED = {
    "label_smoothing_factor": ((0, 0.0), "the loss is the plain negative log-likelihood of the answer"),
    "train_sampling_strategy": (("random", "sequential"), "row lengths are not known before training"),
    "group_by_length": ((False,), "row lengths are not known before training"),
    "do_predict": ((False,), "type --do_eval --predict_with_generate for generated answers"),
    "use_liger_kernel": ((False,), "its fused loss would replace the loss on supervised positions"),
}
"""Fields that would be ignored or would fail later: the values that are fine, and why no other is."""


def check_arguments(arguments: Any) -> None:
    """Refuse a field that training would ignore.

    Raises:
        ConfigError: names the field, its value, the reason and what is allowed.
    """
    for name, (allowed, reason) in UNSUPPORTED.items():
        value = getattr(arguments, name, allowed[0])
        if value not in allowed:
            choices = " or ".join(str(choice).lower() for choice in dict.fromkeys(allowed))
            raise ConfigError(f"--{name} {value} cannot be used: {reason}. Leave it out ({choices}).")
