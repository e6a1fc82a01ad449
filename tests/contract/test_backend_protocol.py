"""Every usable backend offers the whole protocol; the page on adding hardware tells the truth."""

import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vlm_lora import backend as backends
from vlm_lora.backend import Backend, installed, select
from vlm_lora.config.run_config import RunConfig, TuningConfig
from vlm_lora.errors import BackendError
from vlm_lora.memory.request import choose_devices
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
    [(backend, device)] = choose_devices(backends.installed(), "mycard")
    assert (backend.name, device.total_bytes) == ("mycard", 48 * 2**30)


@pytest.mark.parametrize("name", sorted(installed()))
def test_devices_are_named_once_and_have_room(name: str) -> None:
    """Also where the hardware is not there: the plan is made before anybody rents it."""
    devices = installed()[name].devices()
    assert devices
    assert len({device.name for device in devices}) == len(devices)
    for device in devices:
        assert 0 <= device.fixed_bytes < device.total_bytes
        assert device.source


@pytest.mark.parametrize("name", sorted(installed()))
def test_only_memory_that_ran_out_is_called_so(name: str) -> None:
    backend = installed()[name]
    texts = {
        "cuda": "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.",
        "habana": "[Rank:0] FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::234881024 (224)MB",
    }
    assert backend.out_of_memory(RuntimeError(texts[name]))
    assert backend.out_of_memory(MemoryError())
    assert not backend.out_of_memory(RuntimeError("shape mismatch"))
    assert not backend.out_of_memory(ValueError(texts[name]))


def test_a_gpus_allocator_is_understood() -> None:
    assert installed()["cuda"].out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))


def test_planned_dtypes_are_those_of_the_run() -> None:
    """LoRA on a GPU keeps its base in bf16; full weights stay in float32; the host computes in float32."""
    backend = installed()["cuda"]
    devices = {device.name: device for device in backend.devices()}
    lora, full = RunConfig(), RunConfig(tuning=TuningConfig(peft_method="none"))
    found = {
        (run.tuning.peft_method, name): backend.precision(run, {}, devices[name])
        for run in (lora, full)
        for name in ("H100-80", "T4", "CPU")
    }
    assert {key: (value.weights, value.autocast) for key, value in found.items()} == {
        ("lora", "H100-80"): ("bfloat16", "bfloat16"),
        ("lora", "T4"): ("float32", None),
        ("lora", "CPU"): ("float32", None),
        ("none", "H100-80"): ("float32", "bfloat16"),
        ("none", "T4"): ("float32", None),
        ("none", "CPU"): ("float32", None),
    }
    engine = backend.precision(full, {"deepspeed": "zero3"}, devices["H100-80"])
    assert (engine.weights, engine.adapter, engine.autocast) == ("bfloat16", "bfloat16", None)


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
