"""Tiny models of every family: real architectures, processors and tokenizers, random weights.

`build_model_folder("qwen2_5_vl", folder)` writes a folder that loads as a published model does.
"""

from support.tiny.folders import available, build_model, build_model_folder
from support.tiny.processors import build_processor, read_template

__all__ = ["available", "build_model", "build_model_folder", "build_processor", "read_template"]
