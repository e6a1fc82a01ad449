"""Fixtures for the whole tree: tiny model folders, built once per session and never written to."""

from __future__ import annotations

import fcntl
import gc
import importlib.util
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import settings

from support.grouping import pytest_collection_modifyitems as pytest_collection_modifyitems
from support.one_stack import MAIN_STACK_ONLY

# The same examples in every run: a property that fails fails for everybody.
settings.register_profile("repeatable", derandomize=True, database=None)
settings.load_profile("repeatable")

# A shell that starts the suite in the background has it ignore Ctrl-C, and all that it starts; tests press it there.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# No test may reach a network: what is not in the tree is not there.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The workers share the cores: each process has one thread, and sums over tiny tensors are the same.
os.environ["OMP_NUM_THREADS"] = "1"
# DeepSpeed compiles an operator at its first use: for each environment once, not whenever another one had its turn.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
# No test cuts the power: waiting for the disk would show nothing.
os.fsync = lambda fd: None
# peft writes the same card at each save: what that is compiled to stays.
jinja2.Environment.compile = lru_cache(64)(jinja2.Environment.compile)  # type: ignore[method-assign, assignment]
# Earlier checks of data are kept for the session alone.
CACHE = tempfile.TemporaryDirectory(prefix="vlm-lora-cache-")
os.environ["VLM_LORA_CACHE"] = CACHE.name


# Each stack has tests of its own: a machine with Gaudi (simulated on the gaudi stack) and one without.
ON_GAUDI = importlib.util.find_spec("habana_frameworks") is not None
# The demo's base model is made, and the demo runs, with transformers 5.
collect_ignore = ["without_gaudi", "unit/demo", *MAIN_STACK_ONLY] if ON_GAUDI else ["gaudi"]
if ON_GAUDI:
    os.environ.setdefault("PT_HPU_LAZY_MODE", "1")  # read when torch is imported


@pytest.fixture(scope="session", autouse=True)
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this session that all of its workers share."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return Path(os.environ.setdefault("VLM_LORA_TESTS_FOLDER", str(folder)))


def pytest_sessionfinish() -> None:
    """End the warm processes that this worker has started, once the other workers are done with them too."""
    if "support.warm" in sys.modules:
        sys.modules["support.warm"].let_go()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Sums over tiny tensors are the same and faster on one thread."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _settled_heap() -> None:
    """Leave what there is by now, above all imported modules, out of later garbage collections.

    A training calls for one at its end, and without this each would look at half a million objects that stay.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _logging_and_environment_as_they_were() -> Iterator[None]:
    """The command line sets up logging and the environment of its process; here many commands share one."""
    from support.process import as_it_was

    with as_it_was():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
    """The same for commands of fixtures that several tests share, which are set up before the one above."""
    from support.process import as_it_was

    if fixturedef.scope in ("function", "session"):
        return (yield)
    with as_it_was():
        return (yield)


@pytest.fixture(scope="session")
def model_folder(shared_folder: Path) -> Callable[[str], Path]:
    """Return a function from a tiny family's name to its folder. Copy the folder before changing it."""
    root = shared_folder / "models"
    root.mkdir(exist_ok=True)

    def folder(name: str) -> Path:
        place = root / name
        if not place.exists():
            with (root / f"{name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not place.exists():  # else another worker has built it meanwhile
                    build(name, place)
        return place

    def build(name: str, place: Path) -> None:
        from support.tiny import build_model_folder

        unfinished = place.with_suffix(".unfinished")
        build_model_folder(name, unfinished)
        unfinished.rename(place)

    return folder
