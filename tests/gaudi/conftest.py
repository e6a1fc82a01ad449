"""Tests of the Gaudi stack alone."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """optimum-habana is written for an older torch, which now warns about what it calls (torch.jit.script, ...)."""
    for item in items:
        if "gaudi" in item.path.parts:
            for category in ("DeprecationWarning", "FutureWarning", "UserWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{category}"))
