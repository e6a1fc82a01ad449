"""Model folders as the Hub has them: configuration, weights, tokenizer, processor, generation settings."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from support.tiny.configurations import CONFIGURATIONS
from support.tiny.processors import BUILDERS, build_processor

# What ends an answer, by name: the end of turn, and the end of text where the published settings list it too.
ENDS = {
    "gemma3": ("<eos>", "<end_of_turn>"),
    "gemma3n": ("<eos>", "<end_of_turn>"),
    "gemma4": ("<eos>", "<turn|>"),
    "paligemma": ("<eos>",),
    "qwen2_vl": ("<|im_end|>", "<|endoftext|>"),
    "qwen2_5_vl": ("<|im_end|>", "<|endoftext|>"),
    "qwen3_vl": ("<|im_end|>", "<|endoftext|>"),
    "qwen3_5": ("<|im_end|>", "<|endoftext|>"),
    "llava": ("</s>",),
    "llava_next": ("</s>",),
    "llava_next-granite": ("<|end_of_text|>",),
    "llava_onevision": ("<|im_end|>",),
    "llava-pixtral": ("</s>",),
    "mistral3": ("</s>",),
    "idefics3": ("<end_of_utterance>",),
    "smolvlm": ("<end_of_utterance>",),
    "mllama": ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    "internvl": ("<|im_end|>",),
    "lfm2_vl": ("<|im_end|>",),
    "phi4_multimodal": ("<|end|>", "<|endoftext|>"),
}
SHARPER = 4.0
"""Factor on fresh query and key weights: attention that looks somewhere instead of everywhere."""
_QUERY_KEY = ("q_proj", "k_proj", "qkv", "qkv_proj")


def model_class(config: Any) -> Any:
    """Return the class that the automatic classes choose for a configuration."""
    if config.model_type == "phi4_multimodal":
        return transformers.AutoModelForCausalLM
    return transformers.AutoModelForImageTextToText


def waken(model: nn.Module) -> None:
    """Give every weight that starts at zero a value, and sharpen attention, so that images matter."""
    for name, tensor in model.named_parameters():
        leaf = name.rpartition(".")[2]
        if tensor.ndim >= 2 and not tensor.any():
            nn.init.normal_(tensor, std=tensor.shape[-2] ** -0.5)
        elif "gate" in leaf and tensor.ndim == 1 and not tensor.any():
            nn.init.constant_(tensor, 0.7)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            # transformers starts at a standard deviation of 0.02, made for thousands of inputs.
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if name.rpartition(".")[2] in _QUERY_KEY:
                module.weight.data.mul_(SHARPER)


def build_model(name: str, tokenizer: Any, *, seed: int = 0) -> Any:
    """Build a float32 model with random weights that depend on `seed` alone."""
    config = CONFIGURATIONS[name](tokenizer)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        # timm writes functions into the block list that it is given; the saved one must stay plain.
        model = model_class(config).from_config(copy.deepcopy(config))
        model.config = config
        waken(model)
        model.tie_weights()
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ENDS[name]]
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends if len(ends) > 1 else ends[0],
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=16,
    )
    return model.eval()


def available() -> tuple[str, ...]:
    """Return the names of all tiny families that the installed transformers has, `phi3_v` (remote code) last."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    known = [name for name in BUILDERS if name.partition("-")[0] in CONFIG_MAPPING_NAMES]
    return (*known, "phi3_v")


def save_processor(processor: Any, folder: Path) -> None:
    """Write the processor's files for transformers 5.x and 4.55 alike."""
    processor.save_pretrained(folder)
    old = folder / "preprocessor_config.json"
    if not old.exists():
        settings = processor.image_processor.to_dict()
        settings["image_processor_type"] = type(processor.image_processor).__name__.removesuffix("Pil")
        settings["processor_class"] = type(processor).__name__
        old.write_text(json.dumps(settings, indent=2, sort_keys=True, default=str), encoding="utf-8")


def build_model_folder(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Write a complete model folder that the automatic classes load without a network.

    Args:
        name: a model type, or one of its shapes: `llava-pixtral`, `llava_next-granite`.
        folder: where to write; made when missing.
        seed: of the random weights.

    Returns:
        `folder`.
    """
    if name == "phi3_v":
        from support.tiny.remote import build_remote_folder

        return build_remote_folder(folder, seed=seed)
    processor = build_processor(name)
    model = build_model(name, processor.tokenizer, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    save_processor(processor, folder)
    return folder
