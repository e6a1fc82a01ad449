"""Packages with faster kernels: which attention each brings and where it runs, and which a model's layers ask for.

None of them runs without a GPU, so what is chosen by this table has been tried on stand-ins alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_lora.model.attention import FLASH, FLASH_3, FLASH_4, model_classes

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True, kw_only=True)
class FlashPackage:
    """A package with flash attention."""

    kind: str
    """transformers' name of it."""
    module: str
    package: str
    """Its name for pip; two packages share one module."""
    install: str
    capabilities: tuple[int, ...]
    """CUDA's major compute capabilities that it is built for."""
    widest: int
    """The largest size of a head with a backward pass."""


FLASH_PACKAGES = (
    FlashPackage(
        kind=FLASH_3,
        module="flash_attn_interface",
        package="flash-attn-3",
        install="its hopper folder, from source",
        capabilities=(9,),
        widest=256,
    ),
    FlashPackage(
        kind=FLASH_4,
        module="flash_attn",
        package="flash-attn-4",
        install="pip install flash-attn-4",
        capabilities=(9, 10),
        widest=128,
    ),
    FlashPackage(
        kind=FLASH,
        module="flash_attn",
        package="flash-attn",
        install="pip install flash-attn --no-build-isolation",
        capabilities=(8, 9, 10, 11, 12),
        widest=256,
    ),
)
"""In the order in which `auto` takes them."""

LAYER_PACKAGES: Mapping[str, str] = {
    "fla": "flash-linear-attention",
    "causal_conv1d": "causal-conv1d",
    "mamba_ssm": "mamba-ssm",
}
"""Kernels of other layers than attention: the module, and its name for pip."""
_ASKED = re.compile(r'_with_fallback\(\s*"\w+",\s*"(\w+)"|is_(\w+?)_available\b')


def is_installed(module: str, package: str) -> bool:
    """Say whether a module is there, and is of this package."""
    if find_spec(module) is None:
        return False
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def widest_head(config: PretrainedConfig) -> int:
    """Return the size of the language model's heads, as its configuration has it; 0 where it does not say."""
    text = config.get_text_config()
    size = getattr(text, "head_dim", None)
    heads = getattr(text, "num_attention_heads", None)
    return int(size or (text.hidden_size // heads if heads else 0))


def missing_kernels(config: PretrainedConfig) -> tuple[str, ...]:
    """Return the packages that a model's layers would take faster kernels from and that are not installed, for pip."""
    wanted = {name for source in _sources(config) for found in _ASKED.findall(source) for name in found}
    wanted |= {"fla"} if "flash_linear_attention" in wanted else set()
    return tuple(
        package for module, package in LAYER_PACKAGES.items() if module in wanted and find_spec(module) is None
    )


def _sources(config: PretrainedConfig) -> Iterator[str]:
    """Yield the source of the modules that a model's classes are in."""
    names = dict.fromkeys(each.__module__ for each in model_classes(config).values() if each is not None)
    for name in names:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None:
            yield Path(file).read_text(encoding="utf-8")
