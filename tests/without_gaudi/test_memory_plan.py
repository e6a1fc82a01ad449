"""`vlm-lora plan` against whole training runs, and what a run says that runs out of memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch._subclasses.fake_tensor import FakeTensor

from support.peaks import watch_training
from support.rows import write_uneven_rows
from support.runs import script_flags
from vlm_lora.cli.main import main, run_script
from vlm_lora.errors import ConfigError
from vlm_lora.model.objective import SupervisedHead
from vlm_lora.report.memory import progress
from vlm_lora.training import trainer

TOLERANCE = 0.10


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_uneven_rows(tmp_path_factory.mktemp("plan") / "data", rows=8)


def planned(model: Path, rows: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    flags = ["--model_name_or_path", str(model), "--dataset_name", str(rows), "--validation_fraction", "0"]
    assert main(["plan", *flags, "--json", *words]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def without_weights(folder: Path, place: Path) -> Path:
    return Path(shutil.copytree(folder, place, ignore=shutil.ignore_patterns("*.safetensors", "*.bin")))


def predicted(report: dict[str, Any]) -> int:
    [device] = report["devices"]
    return int(device["total_bytes"] - device["items"]["overhead"])


def test_a_checked_data_set_is_planned_by_all_of_its_rows(
    rows: Path, model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sample of eight holds all eight rows as well, so both plans are one."""
    data = Path(shutil.copytree(rows, tmp_path / "data"))
    model, device = model_folder("gemma3"), ("--device", "CPU", "--per_device_train_batch_size", "3")
    sampled = planned(model, data, capsys, *device)
    flags = ["--model_name_or_path", str(model), "--dataset_name", str(data), "--validation_fraction", "0"]
    assert main(["check", *flags, "--json", "--do_eval", "false", "--use_cpu"]) == 0
    checked = planned(model, data, capsys, *device)
    assert checked["devices"] == sampled["devices"]
    assert "8 of 8 rows: " in json.dumps(sampled)
    assert "all 8 rows, as they were checked: " in json.dumps(checked)
    few = planned(model, data, capsys, *device, "--max_length", "500", "--rows", "1")
    assert "1 of 8 rows" in json.dumps(few), "the control: with other settings nothing was checked"
    assert few["devices"] != checked["devices"]


WAYS: tuple[tuple[str, ...], ...] = ((), ("--gradient_checkpointing",), ("--peft_method", "none"))
# The planner is the same on both stacks, and every family's step is measured on both (test_step_peaks.py).
BOTH = [*(("gemma3", words) for words in WAYS), ("qwen2_5_vl", WAYS[1]), ("llava", WAYS[2])]


@pytest.mark.parametrize(("name", "words"), BOTH, ids=[" ".join((name, *words)) for name, words in BOTH])
def test_plan_is_what_training_allocates(
    name: str,
    words: tuple[str, ...],
    rows: Path,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bare = without_weights(model_folder(name), tmp_path / "bare")
    common = ("--per_device_train_batch_size", "8", *words)
    plan = predicted(planned(bare, rows, capsys, *common, "--device", "CPU"))
    found: dict[str, Any] = {}
    monkeypatch.setattr("vlm_lora.training.trainer.build_trainer", watch_training(trainer.build_trainer, found))
    # Pixels and features that were kept come from files, not from the allocator that is asked here.
    kept: dict[str, Any] = {"image_cache": "off", "cache_vision_features": "off"}
    given = {"do_train": True, "max_steps": 2, "validation_fraction": 0, **kept}
    flags = script_flags(model_folder(name), rows, tmp_path / "out", **given)
    assert run_script([*flags, *common]) == 0
    assert plan == pytest.approx(found["measured"], rel=TOLERANCE)
    if "--gradient_checkpointing" in words:
        forgotten = predicted(planned(bare, rows, capsys, *common[:2], "--device", "CPU"))
        assert forgotten != pytest.approx(found["measured"], rel=TOLERANCE)


def test_a_device_that_is_too_small_gets_proposals_that_fit(
    rows: Path,
    model_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = model_folder("qwen2_5_vl")
    need = predicted(planned(folder, rows, capsys, "--device", "CPU"))
    monkeypatch.setattr("vlm_lora_cuda.devices._TOTALS_MIB", {"Small": need * 0.6 / 2**20})
    monkeypatch.setattr("vlm_lora_cuda.devices.CONTEXT_BYTES", 0)
    [device] = planned(folder, rows, capsys, "--device", "small", "--bf16", "false")["devices"]
    assert not device["fits"]
    flags = [proposal["flags"] for proposal in device["proposals"]]
    assert flags[0] == "--gradient_checkpointing"
    assert any(flag.startswith("--per_device_train_batch_size") for flag in flags)
    fitting = next(proposal for proposal in device["proposals"] if proposal["fits"])
    [again] = planned(folder, rows, capsys, "--device", "small", "--bf16", "false", *fitting["flags"].split())[
        "devices"
    ]
    assert again["fits"]
    assert again["total_bytes"] == fitting["total_bytes"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "H1000", "--max_length", "256"], "H100-80"),
        ([], "type --dataset_name to measure them, or --max_length N"),
        (["--max_length", "256", "--assumed_size", "big"], "WIDTHxHEIGHT"),
        (
            ["--max_length", "4"],
            "--max_length 4 is too little for 1 image of 1024x1024 (--images, --assumed_size): the assumed row: ",
        ),
        (["--max_length", "256", "--world_size", "0"], "--world_size 0: must be 1 or more"),
        (["--max_length", "256", "--optim", "lomo"], "does not know what it keeps"),
    ],
)
def test_a_wrong_plan_is_one_message(
    words: list[str], said: str, model_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--model_name_or_path", str(model_folder("llava")), *words]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_the_table_names_the_assumption(
    model_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model_name_or_path", str(model_folder("llava")), "--max_length", "256", "--device", "H100", "L4"]
    assert main(["plan", *words]) == 0
    shown = capsys.readouterr().out
    assert f"Model: {words[1]}\n" in shown
    assert "\nData: assumed, no data was read: rows of 256 tokens" in shown
    assert "H100-80: " in shown
    assert "fits" in shown


@pytest.mark.parametrize(("words", "disabled"), [((), False), (("--disable_tqdm",), True)])
def test_what_is_simulated_is_said_while_it_is(
    words: tuple[str, ...],
    disabled: bool,
    rows: Path,
    model_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said: list[str] = []
    asked: list[bool] = []

    @contextmanager
    def collect(*, disabled: bool) -> Iterator[Callable[[str], None]]:
        asked.append(disabled)
        yield said.append

    monkeypatch.setattr("vlm_lora.report.memory.progress", collect)
    planned(model_folder("llava"), rows, capsys, "--gradient_checkpointing", "--device", "H200", *words)
    assert said == ["Simulating step 1: batch 8, LoRA, checkpointing"]
    assert asked == [disabled]


def test_progress_is_a_terminals_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Console, "is_terminal", property(lambda console: console.stderr))
    for disabled in (False, True):
        with progress(disabled=disabled) as announce:
            announce("Simulating [step] 1")
        shown = capsys.readouterr()
        assert ("Simulating [step] 1" in shown.err) is not disabled
        assert shown.out == ""


GPU_ERROR = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nfurther lines")
CPU_ERROR = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 9 bytes. Error code 12"
)


def failing_with(error: RuntimeError, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first step fail, but not the plan's own pass."""
    forward = SupervisedHead._forward

    def refuse(self: SupervisedHead, hidden: Any) -> Any:
        if isinstance(hidden, FakeTensor):
            return forward(self, hidden)
        raise error

    monkeypatch.setattr(SupervisedHead, "_forward", refuse)


@pytest.mark.parametrize("kept", ["off", "on"])
def test_running_out_of_memory_is_one_message_with_the_plans_advice(
    kept: str,
    rows: Path,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing_with(GPU_ERROR, monkeypatch)
    flags = script_flags(model_folder("llava"), rows, tmp_path / "out", do_train=True, max_steps=1)
    assert run_script([*flags, "--per_device_train_batch_size", "4", "--cache_vision_features", kept]) == 1
    said = capsys.readouterr().err
    assert "Out of memory in training: CUDA out of memory. Tried to allocate 2.00 GiB." in said
    assert "The plan for this run is" in said
    assert "--gradient_checkpointing: " in said
    assert "Traceback" not in said


def test_the_hosts_allocator_is_understood_and_advice_need_not_be_possible(
    rows: Path,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def nothing(*_: object) -> None:
        raise ConfigError("its optimizer is not known.")

    failing_with(CPU_ERROR, monkeypatch)
    monkeypatch.setattr("vlm_lora.memory.run.advise", nothing)
    flags = script_flags(model_folder("llava"), rows, tmp_path / "out", do_train=True, max_steps=1)
    assert run_script(flags) == 1
    said = capsys.readouterr().err
    assert f"Out of memory in training: {str(CPU_ERROR).rstrip('.')}." in said
    assert "No plan can be made for this run: its optimizer is not known." in said
    assert "Traceback" not in said


def test_another_error_stays_what_it_is(
    rows: Path, model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: SupervisedHead, hidden: Any) -> Any:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(SupervisedHead, "_forward", refuse)
    flags = script_flags(model_folder("llava"), rows, tmp_path / "out", do_train=True, max_steps=1)
    assert run_script(flags) == 203
