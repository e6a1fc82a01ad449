"""Every usable backend offers the whole protocol; the page on adding hardware tells the truth."""

import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vlm_lora import backend as backends
from vlm_lora.backend import Backend, installed, select
from vlm_lora.config import RunConfig
from vlm_lora.errors import BackendError
from vlm_lora_cuda.backend import keep_to_one_gpu

PAGE = Path(__file__).parents[2] / "docs" / "backends.md"
METHODS = [name for name, _ in inspect.getmembers(Backend, inspect.isfunction) if not name.startswith("_")]
USABLE = sorted(name for name, backend in installed().items() if backend.probe().usable)


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("method", METHODS)
def test_usable_backend_has_the_method_as_the_protocol_has_it(name: str, method: str) -> None:
    expected = inspect.signature(getattr(Backend, method)).parameters
    found = inspect.signature(getattr(type(installed()[name]), method)).parameters
    assert list(found) == list(expected)


@pytest.mark.parametrize("name", sorted(installed()))
def test_probe_never_raises_and_gives_a_reason_when_unusable(name: str) -> None:
    probe = installed()[name].probe()
    assert probe.usable != bool(probe.reason)


def test_the_page_names_every_method() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [method for method in METHODS if f"`{method}(" not in text and method != "probe"] == []


def test_the_pages_example_works(monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)[0]
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    monkeypatch.setattr(backends, "installed", lambda: {"mycard": namespace["MyCardBackend"]()})
    with pytest.raises(BackendError, match="install the driver"):
        select("mycard")


def test_cpu_arguments_say_what_was_chosen(tmp_path: Path) -> None:
    backend = installed()["cuda"]
    arguments = backend.build_arguments(
        RunConfig(), {"output_dir": str(tmp_path), "use_cpu": True, "dataloader_num_workers": 0}
    )
    assert backend.device().type == "cpu"
    assert not arguments.bf16
    assert not arguments.dataloader_pin_memory
    assert backend.memory()["memory_peak_bytes"] > 0


@pytest.mark.parametrize(("found", "kept"), [(0, 0), (1, 1), (4, 1)])
def test_one_process_keeps_to_one_gpu(found: int, kept: int, caplog: pytest.LogCaptureFixture) -> None:
    """More than one would make transformers wrap the model in DataParallel."""
    arguments = SimpleNamespace(n_gpu=found, _n_gpu=found)
    keep_to_one_gpu(arguments)
    assert arguments._n_gpu == kept
    assert ("accelerate launch" in caplog.text) == (found > 1)
