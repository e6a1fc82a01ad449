"""Versions of what computes: which are kept, and how much a difference between two of them means."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError

from packaging.version import InvalidVersion, Version

from vlm_lora.config.declaration import declarations
from vlm_lora.config.version import __version__, version_of

COMPUTING = ("torch", "transformers", "peft", "accelerate", "deepspeed")
"""Whose minor and major versions may change results; those that adapters declare do, too."""
BESIDE = ("datasets", "tokenizers", "pillow", "numpy")
"""Kept as well."""


def versions() -> dict[str, str]:
    """Return the versions of what computes, those that are installed."""
    found = {"vlm_lora": __version__, "python": platform.python_version()}
    for package in (*COMPUTING, *_declared(), *BESIDE):
        try:
            found[package] = version_of(package)
        except PackageNotFoundError:
            continue
    return found


def split_changes(
    before: Mapping[str, str], now: Mapping[str, str]
) -> tuple[dict[str, tuple[str, str]], dict[str, tuple[str, str]]]:
    """Return the versions that differ and may change results, and the others that differ, each as before and now.

    Patch releases, local builds (`+cpu`), Python's own and packages that are installed on one side alone are others:
    a run that needs one ends where it is not there.
    """
    larger: dict[str, tuple[str, str]] = {}
    smaller: dict[str, tuple[str, str]] = {}
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        judged = old is not None and new is not None and name in (*COMPUTING, *_declared())
        place = larger if judged and _release(str(old)) != _release(str(new)) else smaller
        place[name] = (old or "not installed", new or "not installed")
    return larger, smaller


def _declared() -> tuple[str, ...]:
    return tuple(name for one in declarations().values() for name in one.packages)


def _release(text: str) -> tuple[int, ...] | str:
    try:
        return Version(text).release[:2]
    except InvalidVersion:
        return text
