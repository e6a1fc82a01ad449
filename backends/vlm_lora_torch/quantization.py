"""Weights in 4 bits by bitsandbytes, on CUDA and on the CPU."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlm_lora.config.run_config import RunConfig
from vlm_lora.errors import BackendError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, TrainingArguments

logger = logging.getLogger(__name__)

KINDS = ("nf4", "fp4")


def check_installed() -> None:
    """Raise BackendError where bitsandbytes is missing or broken."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BackendError("--load_in_4bit needs bitsandbytes, which is not installed: pip install bitsandbytes")
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(
            f"--load_in_4bit needs bitsandbytes, which does not import ({error}): pip install -U bitsandbytes"
        ) from error


def quantization_keywords(
    run: RunConfig, kept: Sequence[str], dtype: torch.dtype, arguments: TrainingArguments
) -> dict[str, Any]:
    """Return `from_pretrained` keywords that load every linear layer but `kept` in 4 bits on this process's device."""
    from transformers import BitsAndBytesConfig

    compute = compute_dtype(run.model.bnb_4bit_compute_dtype, dtype, arguments)
    double = run.model.bnb_4bit_use_double_quant
    logger.info(
        "Quantization: %s by bitsandbytes%s, computing in %s.",
        run.model.bnb_4bit_quant_type,
        " with quantized scales" if double else "",
        str(compute).removeprefix("torch."),
    )
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=run.model.bnb_4bit_quant_type,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_use_double_quant=double,
        llm_int8_skip_modules=list(kept),
    )
    return {"quantization_config": config, "device_map": own_device(arguments)}


def own_device(arguments: TrainingArguments) -> dict[str, Any]:
    """Return the place of all weights in few bits: without one transformers takes any GPU, also in a CPU run."""
    return {"": arguments.device}


def stays_packed(config: Any) -> bool:
    """Say whether a base is stored in few bits and loaded so."""
    from vlm_lora.model.stored_weights import stored_weights

    stored = stored_weights(config)
    return stored is not None and stored.is_packed


def keep_layout(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from rewriting 4-bit weights for inference, as it does on CPUs with AVX512-BF16.

    It does so at the first evaluation, rounds the scales to bfloat16 on the way, needs sizes that not every model has,
    and training afterwards would read the other layout.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def compute_dtype(asked: str, dtype: torch.dtype, arguments: TrainingArguments) -> torch.dtype:
    """Return the dtype that 4-bit weights are unpacked to: the one asked for, autocast's, or that of the others."""
    import torch

    if asked != "auto":
        chosen: torch.dtype = getattr(torch, asked)
        return chosen
    if arguments.bf16:
        return torch.bfloat16
    return torch.float16 if arguments.fp16 else dtype
