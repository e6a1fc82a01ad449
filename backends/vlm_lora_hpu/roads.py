"""Which of the two roads to Gaudi a machine has: optimum-habana on transformers 4.55, or transformers 5's own support.

Nothing is imported for it: names and versions are read from what is installed.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from vlm_lora_hpu.probe import is_installed

OLD, NEW = "habana", "gaudi"
"""The backends: over optimum-habana's GaudiTrainer, and over transformers' own Trainer."""


def transformers_version() -> str:
    """Return the installed version; "0" where there is none."""
    try:
        return version("transformers")
    except PackageNotFoundError:
        return "0"


def has_own_support() -> bool:
    """Say whether the installed transformers trains on hpu itself (4.55 knows the device, and no more)."""
    return int(transformers_version().split(".")[0]) >= 5


def road() -> str:
    """Return the backend that `--use_habana` stands for: the road that goes with the installed transformers."""
    return NEW if has_own_support() or not is_installed("optimum.habana") else OLD
