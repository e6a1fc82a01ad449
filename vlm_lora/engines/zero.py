"""DeepSpeed's ZeRO configurations: ready ones by name, the user's own from a file; data only, no engine."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_lora.errors import ConfigError, nearest

_CPU = {"device": "cpu", "pin_memory": True}

STAGES: Mapping[str, Mapping[str, Any]] = {
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero2_offload": {"stage": 2, "offload_optimizer": _CPU},
    "zero3": {"stage": 3},
    "zero3_offload_optimizer": {"stage": 3, "offload_optimizer": _CPU},
    "zero3_offload": {"stage": 3, "offload_optimizer": _CPU, "offload_param": _CPU},
}
"""What `--deepspeed WORD` shards (1: optimizer states, 2: and gradients, 3: and weights) and keeps in host memory.

Source of the stages: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models".
"""

_BY_THE_RUN = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
)


def ready_made(word: str) -> dict[str, Any]:
    """Return the configuration of one of the names in `STAGES`; `launchers/deepspeed/WORD.json` holds the same."""
    # "auto" is the square of the hidden size; DeepSpeed's own default is a buffer of 500 million elements.
    zero: dict[str, Any] = {**copy.deepcopy(dict(STAGES[word])), "reduce_bucket_size": "auto"}
    if zero["stage"] == 3:
        zero |= {"stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto"}
        # Without it the saved weights would be empty.
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    settings: dict[str, Any] = {
        **dict.fromkeys(_BY_THE_RUN, "auto"),
        "steps_per_print": 2_000_000_000,
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "zero_optimization": zero,
    }
    if "offload_optimizer" in zero:
        # Any optimizer may be chosen by --optim; DeepSpeed would refuse all but its own.
        settings["zero_force_ds_cpu_optimizer"] = False
    return settings


def read_zero(given: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration from `--deepspeed`: a name of `STAGES`, a JSON file, or the configuration itself.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(given, Mapping):
        return copy.deepcopy(dict(given))
    if given in STAGES:
        return ready_made(given)
    path = Path(given).expanduser()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--deepspeed {given}: neither a name nor a readable JSON file ({error}).{nearest(given, STAGES)} "
            f"Names are {', '.join(STAGES)}; the same as files are in launchers/deepspeed."
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"--deepspeed {given}: must hold one JSON object.")
    return content


def zero_settings(given: str | Mapping[str, Any], *, bf16: bool, fp16: bool = False) -> dict[str, Any]:
    """Return the configuration with its precision filled in.

    DeepSpeed takes the text "auto" for true, and optimum-habana leaves it there: an fp32 run would silently be
    in bf16.

    Args:
        given: see `read_zero`.
        bf16: whether the run is in bf16.
        fp16: whether the run is in fp16.

    Raises:
        ConfigError: it cannot be read, contradicts the run's precision, or would save empty weights.
    """
    settings = read_zero(given)
    # accelerate reads a file that is silent about it as 1.
    settings.setdefault("gradient_accumulation_steps", "auto")
    for name, value in (("bf16", bf16), ("fp16", fp16)):
        section = dict(settings.get(name, {}))
        if section.get("enabled", "auto") == "auto":
            section["enabled"] = value
        if section["enabled"] != value:
            raise ConfigError(
                f"--deepspeed has {name} {str(section['enabled']).lower()} and the run has --{name} "
                f'{str(value).lower()}: make them agree, or write "auto" in the file.'
            )
        settings[name] = section
    zero = settings.get("zero_optimization", {})
    if zero.get("stage") == 3 and not zero.setdefault("stage3_gather_16bit_weights_on_model_save", True):
        raise ConfigError(
            "--deepspeed: stage 3 with stage3_gather_16bit_weights_on_model_save false would save empty weights. "
            "Leave the key out, or write true."
        )
    return settings


def zero_stage(settings: Mapping[str, Any]) -> int:
    """Return the ZeRO stage of a configuration, 0 where it shards nothing."""
    return int(settings.get("zero_optimization", {}).get("stage", 0))


def offloads_optimizer(settings: Mapping[str, Any]) -> bool:
    """Say whether optimizer states live in host memory."""
    device = settings.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none")
    return str(device) == "cpu"


def refuse_unchecked_updates(settings: Mapping[str, Any]) -> None:
    """Refuse `--on_nonfinite skip_step` where DeepSpeed would make an update whatever its gradients are.

    Args:
        settings: DeepSpeed's configuration, precision settled.

    Raises:
        ConfigError: names the key of the configuration, and what to give.
    """
    zero, stage = settings.get("zero_optimization", {}), zero_stage(settings)
    bf16, fp16 = (settings.get(name, {}).get("enabled") is True for name in ("bf16", "fp16"))
    fault = ""
    if stage == 0 and not (bf16 or fp16):
        fault = "stage 0 in fp32 looks at no gradient before its update. Give --deepspeed zero1 or --bf16"
    elif stage in (1, 2) and bf16 and settings["bf16"].get("check_grad_overflow") is False:
        fault = 'its configuration has "check_grad_overflow": false under "bf16". Take it out'
    elif stage in (1, 2) and not (bf16 or fp16) and zero.get("compute_grad_norm") is False:
        fault = 'its configuration has "compute_grad_norm": false. Take it out'
    if fault:
        raise ConfigError(
            f"--on_nonfinite skip_step leaves it to DeepSpeed's overflow check to make no update, and {fault}, or give "
            "--on_nonfinite stop."
        )
