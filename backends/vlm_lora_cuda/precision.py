"""Which dtype and which attention, and why: every choice is logged with its reason."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vlm_lora.backend import DeviceSpec, Precision
from vlm_lora.config import RunConfig
from vlm_lora.errors import BackendError, ConfigError
from vlm_lora_cuda.devices import WIDENED

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, TrainingArguments

logger = logging.getLogger(__name__)


def check_precision(values: Mapping[str, Any], *, on_gpu: bool) -> None:
    """Refuse precision flags that this device cannot honour."""
    if values.get("fp16") and values.get("bf16"):
        raise ConfigError("--fp16 and --bf16 were both given: choose one (--bf16 on GPUs since 2020).")
    if on_gpu:
        return
    for flag in ("fp16", "tf32"):
        if values.get(flag):
            raise ConfigError(
                f"--{flag} needs a CUDA GPU and this run is on the CPU. Leave it out (fp32), or type --bf16."
            )


def default_precision(values: Mapping[str, Any], *, on_gpu: bool) -> dict[str, bool]:
    """Return bf16 autocast as the default where the GPU has it and nothing else was typed."""
    if not on_gpu or any(values.get(flag) is not None for flag in ("bf16", "fp16")):
        return {}
    import torch

    if torch.cuda.is_bf16_supported(including_emulation=False):
        logger.info("Precision: bf16 autocast, because this GPU computes in bf16 (--bf16 false for fp32).")
        return {"bf16": True}
    logger.info("Precision: fp32, because this GPU has no bf16 (--fp16 for half precision with a loss scaler).")
    return {}


def choose_dtype(run: RunConfig, arguments: TrainingArguments, *, on_gpu: bool) -> torch.dtype:
    """Return the dtype that the base weights are loaded in."""
    import torch

    name, reason = weights_dtype(run, bf16=bool(arguments.bf16), on_gpu=on_gpu)
    logger.info("Weights: %s, because %s.", name, reason)
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def weights_dtype(run: RunConfig, *, bf16: bool, on_gpu: bool) -> tuple[str, str]:
    """Return the name of that dtype in torch, and the reason."""
    if run.model.dtype != "auto":
        return run.model.dtype, "--dtype says so"
    if not on_gpu:
        return "float32", "the CPU is fastest and exact in it"
    if run.tuning.peft_method == "none":
        return "float32", "full-weight updates are lost in 16-bit weights"
    if bf16:
        return "bfloat16", "the frozen base needs no more; LoRA matrices stay float32"
    return "float32", "bf16 is off"


def planned_precision(run: RunConfig, values: Mapping[str, Any], device: DeviceSpec) -> Precision:
    """Return the dtypes of a run on a device that need not be here, by the same rules."""
    typed = any(values.get(flag) is not None for flag in ("bf16", "fp16"))
    bf16 = bool(values.get("bf16")) if typed else device.computes_bf16 and not device.is_cpu
    weights, _ = weights_dtype(run, bf16=bf16, on_gpu=not device.is_cpu)
    if values.get("deepspeed"):
        # DeepSpeed casts the whole model and leaves autocast off.
        engine = "bfloat16" if bf16 else "float16" if values.get("fp16") else None
        return Precision(weights=engine or weights, adapter=engine)
    autocast = "bfloat16" if bf16 else "float16" if values.get("fp16") else None
    return Precision(weights=weights, autocast=autocast, widened=frozenset() if device.is_cpu else WIDENED)


def choose_attention(asked: str, config: PretrainedConfig, dtype: torch.dtype, *, on_gpu: bool) -> str:
    """Return the attention implementation, checked against model, package, dtype and device."""
    model_class = _model_class(config)
    if asked == "auto":
        obstacle = _flash_obstacle(config, model_class, dtype, on_gpu=on_gpu)
        if obstacle is None:
            logger.info("Attention: flash_attention_2, because it is installed and the model supports it.")
            return "flash_attention_2"
        chosen = "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"
        logger.info("Attention: %s (no flash attention: %s).", chosen, obstacle)
        return chosen
    if asked == "flash_attention_2":
        obstacle = _flash_obstacle(config, model_class, dtype, on_gpu=on_gpu)
        if obstacle is not None and not _supports_flash(model_class):
            logger.warning("Attention: sdpa instead of flash_attention_2: %s.", obstacle)
            return "sdpa"
        if obstacle is not None:
            raise BackendError(
                f"--attn_implementation flash_attention_2 cannot be used: {obstacle}. "
                "Type --attn_implementation auto to take what is there."
            )
    return asked


def _model_class(config: PretrainedConfig) -> type | None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_MAPPING

    for mapping in (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_MAPPING):
        if type(config) in mapping:
            found: type = mapping[type(config)]
            return found
    return None


def _supports_flash(model_class: type | None) -> bool:
    # transformers 4.55 and 5.x name the same fact differently.
    names = ("_supports_flash_attn", "_supports_flash_attn_2")
    return any(getattr(model_class, name, False) for name in names)


def _flash_obstacle(
    config: PretrainedConfig, model_class: type | None, dtype: torch.dtype, *, on_gpu: bool
) -> str | None:
    import torch

    if not on_gpu:
        return "it runs on CUDA GPUs only and this run is on the CPU"
    if not _supports_flash(model_class):
        return f"transformers has no flash attention for {config.model_type}"
    if importlib.util.find_spec("flash_attn") is None:
        return "the package is not installed (pip install flash-attn --no-build-isolation)"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in 16 bits and the weights are {dtype}"
    return None
