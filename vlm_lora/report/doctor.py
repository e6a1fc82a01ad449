"""What this machine has, what would be used, and what is missing."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from vlm_lora.backend import installed, select
from vlm_lora.config.declaration import declarations
from vlm_lora.config.version import __version__
from vlm_lora.errors import BackendError
from vlm_lora.model.stored_checks import describe_methods

PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "deepspeed",
    "bitsandbytes",
)


def diagnose() -> str:
    """Return the report as text, one line a fact."""
    packages = (*PACKAGES, *(name for one in declarations().values() for name in one.packages))
    lines = [f"vlm-lora {__version__} on Python {platform.python_version()}, {platform.platform()}", ""]
    lines += [f"  {name:<22}{_version(name)}" for name in dict.fromkeys(packages)]
    lines += ["", "  bases in few bits"]
    lines += [f"    {name:<20}{what}" for name, what in describe_methods().items()]
    chosen = _chosen()
    for name, backend in sorted(installed().items()):
        probe = backend.probe()
        mark = "would be used" if name == chosen else "usable" if probe.usable else "not usable"
        lines += ["", f"  backend {name}: {mark}: {probe.device or probe.reason}"]
        lines += [f"    {fact:<18}{value}" for fact, value in backend.facts().items()]
    return "\n".join(lines)


def _chosen() -> str | None:
    try:
        return select("auto")[0].name
    except BackendError:
        return None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
