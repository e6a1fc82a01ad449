"""Which settings this version of the project has: a benchmark of one that is missing is named, not run."""

from __future__ import annotations

from vlm_lora.config.fields import own_fields
from vlm_lora.errors import ConfigError
from vlm_lora.training.arguments import check_arguments


def has_setting(name: str) -> bool:
    """Whether `vlm-lora train` has a setting of its own of this name."""
    return name in own_fields()


def groups_by_length() -> bool:
    """Whether `--train_sampling_strategy group_by_length` is taken."""
    try:
        check_arguments({"train_sampling_strategy": "group_by_length"})
    except ConfigError:
        return False
    return True
