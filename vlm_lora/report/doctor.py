"""What this machine has, what would be used, and what is missing."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from vlm_lora import __version__
from vlm_lora.backend import installed

PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "deepspeed",
    "flash-attn",
    "bitsandbytes",
    "optimum-habana",
)


def diagnose() -> str:
    """Return the report as text, one line a fact."""
    lines = [f"vlm-lora {__version__} on Python {platform.python_version()}, {platform.platform()}", ""]
    lines += [f"  {name:<16}{_version(name)}" for name in PACKAGES]
    lines.append("")
    probes = {name: backend.probe() for name, backend in installed().items()}
    usable = {name: probe for name, probe in probes.items() if probe.usable}
    chosen = max(usable, key=lambda name: usable[name].priority, default=None)
    for name, probe in sorted(probes.items()):
        mark = "would be used" if name == chosen else "usable" if probe.usable else "not usable"
        lines.append(f"  backend {name:<10}{mark}: {probe.device or probe.reason}")
    return "\n".join(lines)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
