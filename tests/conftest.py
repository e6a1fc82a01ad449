"""Fixtures for the whole tree: tiny model folders, built once per session and never written to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run: a property that fails fails for everybody.
settings.register_profile("repeatable", derandomize=True, database=None)
settings.load_profile("repeatable")

# No test may reach a network: what is not in the tree is not there.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Sums over tiny tensors are the same and faster on one thread."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a tiny family's name to its folder. Copy the folder before changing it."""
    from support.tiny import build_model_folder

    root = tmp_path_factory.mktemp("models")

    def folder(name: str) -> Path:
        place = root / name
        if not place.exists():
            build_model_folder(name, place)
        return place

    return folder
