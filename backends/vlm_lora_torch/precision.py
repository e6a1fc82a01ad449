"""Which dtype, and why: every choice is logged with its reason."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlm_lora.config.run_config import RunConfig
from vlm_lora.engines.precision import spoken
from vlm_lora.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, TrainingArguments

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Card:
    """What decides on a device's precision."""

    name: str
    bf16: bool
    capability: tuple[int, int] = (8, 0)
    """CUDA's compute capability: (8, 0) and newer have tf32. Another device leaves it."""


_AMPERE = (8, 0)
_CONTRADICTIONS = (
    ("fp16", "bf16"),
    ("fp16_full_eval", "bf16_full_eval"),
    ("fp16", "bf16_full_eval"),
    ("bf16", "fp16_full_eval"),
)


def check_precision(values: Mapping[str, Any], card: Card | None, *, launched: str | None = None) -> None:
    """Refuse precision flags that contradict each other or that this device cannot honour.

    Args:
        values: the training arguments that were set.
        card: None on the CPU.
        launched: what `accelerate launch` says, from `launched_precision`; it counts as typed.

    Raises:
        ConfigError: names the flag, the reason and what to type.
    """
    values = {**values, **({launched: True} if launched else {})}
    for first, second in _CONTRADICTIONS:
        if values.get(first) and values.get(second):
            raise ConfigError(
                f"{_source(first, launched)} and {_source(second, launched)} were both given: choose one of fp16 and "
                "bf16 (bf16 on GPUs since 2020)."
            )
    asked = [flag for flag in ("fp16", "tf32", "fp16_full_eval", "bf16", "bf16_full_eval") if values.get(flag)]
    for flag in asked:
        source = _source(flag, launched)
        if card is None:
            if not flag.startswith("bf16"):
                cure = "Start with mixed_precision no" if flag == launched else "Leave it out"
                raise ConfigError(
                    f"{source} needs a CUDA GPU and this run is on the CPU. {cure} (fp32), or type --bf16."
                )
        elif flag == "tf32" and card.capability < _AMPERE:
            raise ConfigError(f"--tf32: {_too_old(card)} and has no tf32. Leave it out.")
        elif flag.startswith("bf16") and not card.bf16:
            instead = flag.replace("bf16", "fp16")
            cure = f"Type --{instead}, or --bf16 false for fp32"
            if flag == launched:
                cure = "Start with mixed_precision fp16, or no for fp32"
            raise ConfigError(f"{source}: {_too_old(card)} and has no bf16. {cure}.")


def _source(flag: str, launched: str | None) -> str:
    return spoken(flag) if flag == launched else f"--{flag}"


def _too_old(card: Card) -> str:
    return f"{card.name} has compute capability {card.capability[0]}.{card.capability[1]}, older than 8.0,"


def choose_precision(
    values: Mapping[str, Any], card: Card | None, *, by_deepspeed: bool = False, launched: str | None = None
) -> dict[str, bool]:
    """Return what was not set (the launcher's, or bf16 where the GPU has it), and log the whole choice in one line.

    Args:
        values: the training arguments that were set.
        card: None on the CPU.
        by_deepspeed: DeepSpeed casts the model where others compute under autocast.
        launched: what `accelerate launch` says, from `launched_precision`.
    """
    how = "weights by DeepSpeed, fp32 copies of what trains in its optimizer" if by_deepspeed else "autocast"
    typed = launched or next((flag for flag in ("bf16", "fp16") if values.get(flag)), None)
    source = _source(typed, launched) if typed else ""
    off = next((flag for flag in ("bf16", "fp16") if values.get(flag) is False), None)
    # Said to the training arguments too: dtypes and DeepSpeed's configuration are read from their flags.
    chosen = {launched: True} if launched else {}
    if typed == "bf16":
        summary = f"bf16 {how}, because {source} says so"
    elif typed == "fp16":
        summary = f"fp16 {how}, with a loss scaler, because {source} says so"
    elif off is not None:
        summary = f"fp32, because --{off} false says so"
    elif card is None:
        summary = "fp32, because the CPU is exact and fastest in it"
    elif card.bf16:
        chosen = {"bf16": True}
        summary = f"bf16 {how}, because this GPU computes in bf16 (--bf16 false for fp32)"
    else:
        summary = "fp32, because this GPU has no bf16 (--fp16 for half precision with a loss scaler)"
    if values.get("tf32") is not None:
        summary += f"; products of fp32 tensors {'in tf32' if values['tf32'] else 'exact'} (--tf32)"
    for flag in ("bf16_full_eval", "fp16_full_eval"):
        if values.get(flag):
            summary += f"; evaluation with all weights in {flag[:4]} (--{flag})"
    logger.info("Precision: %s.", summary)
    return chosen


def choose_dtype(
    run: RunConfig, config: PretrainedConfig, arguments: TrainingArguments, *, on_card: bool
) -> torch.dtype:
    """Return the dtype that the base weights are loaded in; LoRA matrices are made in float32.

    Raises:
        ConfigError: float16 weights would be trained.
    """
    import torch

    if run.tuning.peft_method == "none" and arguments.do_train:
        if run.model.dtype == "float16":
            raise ConfigError(
                "--dtype float16 with --peft_method none: float16 weights cannot be trained, their gradients cannot be "
                "unscaled. Type --dtype float32, with --fp16 for products in float16."
            )
        if run.model.dtype == "bfloat16":
            logger.warning(
                "Weights: bfloat16, because --dtype says so; changes below 1/256 of a weight are lost. "
                "--dtype float32 with --bf16 keeps them."
            )
            return torch.bfloat16
    name, reason = weights_dtype(
        run, bf16=bool(arguments.bf16), fp16=bool(arguments.fp16), published=_published_dtype(config), on_card=on_card
    )
    logger.info("Weights: %s, because %s.", name, reason)
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def weights_dtype(run: RunConfig, *, bf16: bool, fp16: bool, published: str, on_card: bool) -> tuple[str, str]:
    """Return the name of that dtype in torch, and the reason; `published` is the dtype that config.json names."""
    if run.model.dtype != "auto":
        return run.model.dtype, "--dtype says so"
    if not on_card:
        return "float32", "the CPU is fastest and exact in it"
    if run.tuning.peft_method == "none":
        return "float32", "full-weight updates are lost in 16-bit weights"
    if bf16:
        return "bfloat16", "the frozen base needs no more"
    if fp16 and published == "float16":
        return "float16", "they were published so"
    if fp16:
        return "float32", (
            "they were not published in float16, whose range is smaller (--dtype float16 halves their memory)"
        )
    return "float32", "bf16 is off"


def _published_dtype(config: PretrainedConfig) -> str:
    # transformers 4.55 and 5.x name the same fact differently.
    found = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
    return str(found).removeprefix("torch.")
