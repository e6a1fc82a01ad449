"""A model folder that brings its own code, laid out as Phi-3-Vision is published."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers

from support.tiny.folders import waken
from support.tiny.processors import read_template
from support.tiny.vocabularies import VOCABULARIES
from support.tiny.vocabulary import build_tokenizer

CODE = Path(__file__).parent / "remote_phi3_v"
AUTO_MAP = {
    "AutoConfig": "configuration_phi3_v.Phi3VConfig",
    "AutoModelForCausalLM": "modeling_phi3_v.Phi3VForCausalLM",
}


def _import(name: str) -> ModuleType:
    """Import one of the code files as the module it will be in the folder."""
    full = f"support.tiny.remote_phi3_v.{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, CODE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


def _tokenizer() -> Any:
    tokenizer = build_tokenizer(VOCABULARIES["phi3_v"])
    tokenizer.chat_template = read_template("phi3_v")
    return tokenizer


def build_remote_processor() -> Any:
    """Build the processor without going through a folder."""
    module = _import("processing_phi3_v")
    return module.Phi3VProcessor(module.Phi3VImageProcessor(), _tokenizer())


def build_remote_folder(folder: Path, *, seed: int = 0) -> Path:
    """Write a folder that loads with `trust_remote_code=True` alone."""
    tokenizer = _tokenizer()
    config = _import("configuration_phi3_v").Phi3VConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = _import("modeling_phi3_v").Phi3VForCausalLM(config)
        waken(model)
    ends = tokenizer.convert_tokens_to_ids(["<|end|>", "<|endoftext|>"])
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings["auto_map"] = AUTO_MAP
    (folder / "config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    images = {
        "auto_map": {
            "AutoProcessor": "processing_phi3_v.Phi3VProcessor",
            "AutoImageProcessor": "processing_phi3_v.Phi3VImageProcessor",
        },
        "image_processor_type": "Phi3VImageProcessor",
        "processor_class": "Phi3VProcessor",
        "side": config.image_side,
        "patch_size": config.patch_size,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(images, indent=2), encoding="utf-8")
    for name in ("configuration_phi3_v.py", "modeling_phi3_v.py", "processing_phi3_v.py"):
        shutil.copyfile(CODE / name, folder / name)
    return folder
