"""The stack that the tests run on is the one that is locked."""

from __future__ import annotations

import re
from importlib.metadata import distributions
from pathlib import Path

from vlm_lora.compat import IS_5

ROOT = Path(__file__).parents[3]
OWN = {"vlm-lora", "torchvision-cpu-schemas", "habana-torch-plugin", "pip"}
"""What is of this project or stands for a machine's own, and what installs it."""


def test_every_installed_package_is_locked_in_its_version() -> None:
    lock = ROOT / f"requirements-lock-{'main' if IS_5 else 'gaudi'}.txt"
    locked = dict(re.findall(r"^([\w-]+)==(\S+) ", lock.read_text(encoding="utf-8"), re.MULTILINE))
    found = {re.sub(r"[-_.]+", "-", each.metadata["Name"]).lower(): each.version for each in distributions()}
    installed = {name: version.partition("+")[0] for name, version in found.items() if name not in OWN}
    assert installed == locked
    assert "torch" in installed
