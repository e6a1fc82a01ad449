"""Numbers that a DeepSpeed configuration and the flags both hold: taken from the file, or compared."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vlm_lora.engines.zero import read_zero
from vlm_lora.errors import ConfigError
from vlm_lora.launch.placement import launcher_asks_for

logger = logging.getLogger(__name__)

NUMBERS: Mapping[str, tuple[str, ...]] = {
    "train_micro_batch_size_per_gpu": ("per_device_train_batch_size",),
    "gradient_accumulation_steps": ("gradient_accumulation_steps",),
    "gradient_clipping": ("max_grad_norm",),
    "optimizer.params.lr": ("learning_rate",),
    "optimizer.params.betas": ("adam_beta1", "adam_beta2"),
    "optimizer.params.eps": ("adam_epsilon",),
    "optimizer.params.weight_decay": ("weight_decay",),
    "scheduler.params.warmup_max_lr": ("learning_rate",),
}
"""Keys of a configuration, and the flags that say the same; with two flags, the key holds a list of two."""


def with_file_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that were given, and those that only the DeepSpeed configuration gives as numbers.

    Raises:
        ConfigError: the configuration cannot be read.
    """
    settings = _configuration(values)
    taken: dict[str, Any] = {}
    for key, flags in NUMBERS.items():
        found = _look_up(settings, key)
        numbers = found if isinstance(found, list) else [found]
        if len(numbers) == len(flags) and all(type(number) in (int, float) for number in numbers):
            for flag, number in zip(flags, numbers, strict=True):
                if flag not in values:
                    taken.setdefault(flag, number)
    if taken:
        logger.info("From the DeepSpeed configuration: %s.", ", ".join(f"--{name} {taken[name]}" for name in taken))
    return {**values, **taken}


def check_numbers(arguments: Any) -> None:
    """Refuse a DeepSpeed configuration whose numbers differ from the flags.

    Raises:
        ConfigError: names each key with both values.
    """
    plugin = getattr(arguments, "deepspeed_plugin", None)
    if plugin is None:
        return
    expected: dict[str, tuple[str, Any]] = {}
    for key, flags in NUMBERS.items():
        both = [getattr(arguments, flag) for flag in flags]
        expected[key] = (" and --".join(flags), both if len(both) > 1 else both[0])
    factors = ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size")
    sizes = [getattr(arguments, name) for name in factors]
    expected["train_batch_size"] = (
        "per_device_train_batch_size x --gradient_accumulation_steps x processes =",
        sizes[0] * sizes[1] * sizes[2],
    )
    different = []
    for key, (flag, value) in expected.items():
        found = _look_up(plugin.deepspeed_config, key)
        if found not in (None, "auto", value):
            different.append(f'"{key}" {found} there, --{flag} {value} here')
    if different:
        raise ConfigError(
            f"The DeepSpeed configuration and the flags differ: {'; '.join(different)}. Make them agree, or write "
            '"auto" in the file (for accelerate, gradient_accumulation_steps is 1 in a file that leaves it out).'
        )


def without_numbers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without what the flags say too: numbers, batch sizes, precision."""
    said = {*NUMBERS, "train_batch_size", "bf16.enabled", "fp16.enabled"}
    return _without(settings, said, "")


@contextmanager
def agreeing_schedule() -> Iterator[None]:
    """Turn DeepSpeed's refusal of a schedule with other numbers of steps, known only now, into a message.

    Raises:
        ConfigError: names the keys.
    """
    try:
        yield
    except ValueError as error:
        if "mismatch TrainingArguments" not in str(error):
            raise
        lines = [line.removeprefix("- ds ") for line in str(error).splitlines() if line.startswith("- ds ")]
        raise ConfigError(
            f"The DeepSpeed configuration and the run differ: {'; '.join(lines).replace(' vs hf ', ', here ')}. Make "
            'them agree, or write "auto" in the file.'
        ) from error


def _configuration(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration of `--deepspeed`, or else of `accelerate launch`; empty where there is none."""
    if values.get("deepspeed"):
        return read_zero(values["deepspeed"])
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    return read_zero(file) if launcher_asks_for("deepspeed", os.environ) and file != "none" else {}


def _look_up(settings: Any, key: str) -> Any:
    """Return what stands under a key of names and dots; None where nothing does."""
    for name in key.split("."):
        settings = settings.get(name) if isinstance(settings, Mapping) else None
    return settings


def _without(settings: Mapping[str, Any], keys: Collection[str], prefix: str) -> dict[str, Any]:
    kept = {key: value for key, value in settings.items() if f"{prefix}{key}" not in keys}
    return {
        key: _without(value, keys, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in kept.items()
    }
