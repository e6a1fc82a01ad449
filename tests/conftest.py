"""Fixtures for the whole tree: tiny model folders, built once per session and never written to."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run: a property that fails fails for everybody.
settings.register_profile("repeatable", derandomize=True, database=None)
settings.load_profile("repeatable")

# No test may reach a network: what is not in the tree is not there.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Earlier checks of data are kept for the session alone.
CACHE = tempfile.TemporaryDirectory(prefix="vlm-lora-cache-")
os.environ["VLM_LORA_CACHE"] = CACHE.name


# Each stack has tests of its own: a machine with Gaudi (simulated on the gaudi stack) and one without.
ON_GAUDI = importlib.util.find_spec("habana_frameworks") is not None
# The demo's base model is made, and the demo runs, with transformers 5.
collect_ignore = ["without_gaudi", "unit/demo"] if ON_GAUDI else ["gaudi"]
if ON_GAUDI:
    os.environ.setdefault("PT_HPU_LAZY_MODE", "1")  # read when torch is imported


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Sums over tiny tensors are the same and faster on one thread."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _logging_and_environment_as_they_were() -> Iterator[None]:
    """The command line sets up logging and the environment of its process; here many commands share one."""
    from support.process import as_it_was

    with as_it_was():
        yield


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
