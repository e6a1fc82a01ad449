"""Every installed backend offers the whole protocol; the page on adding hardware tells the truth."""

import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vlm_lora.backend import Backend, Launcher, Planner, installed
from vlm_lora.config.run_config import RunConfig, TuningConfig
from vlm_lora_cuda.backend import keep_to_one_gpu

PAGE = Path(__file__).parents[2] / "docs" / "backends.md"


def methods(protocol: type) -> list[str]:
    return [name for name, _ in inspect.getmembers(protocol, inspect.isfunction) if not name.startswith("_")]


@pytest.mark.parametrize("name", sorted(installed()))
@pytest.mark.parametrize("method", methods(Backend))
def test_a_backend_has_the_method_as_the_protocol_has_it(name: str, method: str) -> None:
    expected = inspect.signature(getattr(Backend, method)).parameters
    found = inspect.signature(getattr(type(installed()[name]), method)).parameters
    assert list(found) == list(expected)


@pytest.mark.parametrize("name", sorted(installed()))
def test_its_planner_and_launcher_too(name: str) -> None:
    backend = installed()[name]
    for part, protocol in ((backend.planner, Planner), (backend.launcher, Launcher)):
        for method in methods(protocol):
            expected = inspect.signature(getattr(protocol, method)).parameters
            assert list(inspect.signature(getattr(type(part), method)).parameters) == list(expected)


@pytest.mark.parametrize("name", sorted(installed()))
def test_probe_never_raises_and_gives_a_reason_when_unusable(name: str) -> None:
    probe = installed()[name].probe()
    assert probe.usable != bool(probe.reason)


@pytest.mark.parametrize("name", sorted(installed()))
def test_what_is_free_or_a_path_is_a_flag(name: str) -> None:
    declared = installed()[name].declaration
    assert (declared.free_flags | declared.path_flags | declared.early_flags) <= declared.flags
    assert declared.logger == type(installed()[name]).__module__.split(".")[0]


def test_the_page_names_every_method() -> None:
    text = PAGE.read_text(encoding="utf-8")
    every = [*methods(Backend), *methods(Planner), *methods(Launcher)]
    assert [method for method in every if not re.search(rf"`{method}\b|def {method}\(", text)] == []


def test_one_object_serves_the_whole_process() -> None:
    assert installed()["cpu"] is installed()["cpu"]


@pytest.mark.parametrize("name", sorted(installed()))
def test_devices_are_named_once_and_have_room(name: str) -> None:
    """Also where the hardware is not there: the plan is made before anybody rents it."""
    devices = installed()[name].planner.devices()
    assert devices
    assert len({device.name for device in devices}) == len(devices)
    for device in devices:
        assert 0 <= device.fixed_bytes < device.total_bytes
        assert device.source


CPU_TEXT = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
OUT_OF_MEMORY = {
    "cpu": CPU_TEXT,
    "cuda": CPU_TEXT,
    "gaudi": "[Rank:0] FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::234881024 (224)MB",
    "habana": "[Rank:0] FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::234881024 (224)MB",
}


@pytest.mark.parametrize("name", sorted(installed()))
def test_only_memory_that_ran_out_is_called_so(name: str) -> None:
    backend = installed()[name]
    assert backend.out_of_memory(RuntimeError(OUT_OF_MEMORY[name]))
    assert backend.out_of_memory(MemoryError())
    assert not backend.out_of_memory(RuntimeError("shape mismatch"))
    assert not backend.out_of_memory(ValueError(OUT_OF_MEMORY[name]))


def test_a_gpus_allocator_is_understood() -> None:
    assert installed()["cuda"].out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))


def test_planned_dtypes_are_those_of_the_run() -> None:
    """LoRA on a GPU keeps its base in bf16; full weights stay in float32; the host computes in float32."""
    planners = {name: backend.planner for name, backend in installed().items()}
    devices = {device.name: (planner, device) for planner in planners.values() for device in planner.devices()}
    lora, full = RunConfig(), RunConfig(tuning=TuningConfig(peft_method="none"))
    found = {
        (run.tuning.peft_method, name): devices[name][0].precision(run, {}, devices[name][1])
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
    planner, h100 = devices["H100-80"]
    engine = planner.precision(full, {"deepspeed": "zero3"}, h100)
    assert (engine.weights, engine.adapter, engine.autocast) == ("bfloat16", "bfloat16", None)


def test_cpu_arguments_say_what_was_chosen(tmp_path: Path) -> None:
    backend = installed()["cpu"]
    arguments = backend.arguments(RunConfig(), {"output_dir": str(tmp_path), "dataloader_num_workers": 0})
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
