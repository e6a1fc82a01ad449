"""What the watchdog counts as standing still: not what takes long by its nature, and nothing under a debugger."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vlm_lora.training.guards import watchdog
from vlm_lora.training.guards.watchdog import Watchdog


def made(*, fixed_shapes: bool = False, torch_compile: bool = False) -> Watchdog:
    arguments = SimpleNamespace(process_index=0, world_size=1, torch_compile=torch_compile)
    trainer: Any = SimpleNamespace(args=arguments, fixed_shapes=fixed_shapes)
    return Watchdog(trainer, 60)


def batch(length: int) -> dict[str, Any]:
    return {"input_ids": torch.zeros(1, length), "names": ["a row"]}


def control(*, evaluates: bool = False, saves: bool = False) -> Any:
    return SimpleNamespace(should_evaluate=evaluates, should_save=saves)


def excuses(dog: Watchdog, length: int, end: Any) -> list[str]:
    """Take a step; return the excuse while it is computed and the one after it."""
    dog.on_step_begin(None, None, None)
    dog.see(batch(length))
    within = dog._standing.excuse
    dog.on_step_end(None, None, end)
    return [within, dog._standing.excuse]


@pytest.mark.parametrize("kind", ["fixed_shapes", "torch_compile"])
def test_the_first_step_of_a_shape_does_not_count_where_hardware_compiles(kind: str) -> None:
    dog = made(**{kind: True})
    assert excuses(dog, 8, control())[1] == ""
    assert excuses(dog, 8, control()) == ["", ""]
    assert excuses(dog, 16, control()) == ["the first step of a shape", ""]
    assert excuses(dog, 16, control()) == ["", ""]


def test_elsewhere_only_the_first_step_does_not_count() -> None:
    """The control: there each batch may have a shape of its own."""
    dog = made()
    assert excuses(dog, 8, control()) == ["the first step", ""]
    assert excuses(dog, 16, control()) == ["", ""]


def test_evaluating_and_saving_do_not_count_until_the_next_batch_has_come() -> None:
    dog = made()
    excuses(dog, 8, control())
    assert excuses(dog, 8, control(evaluates=True)) == ["", "an evaluation or a save"]
    assert excuses(dog, 8, control(saves=True)) == ["", "an evaluation or a save"]
    assert excuses(dog, 8, control()) == ["", ""]
    dog.on_epoch_end(None, None, control(saves=True))
    assert dog._standing.excuse == "an evaluation or a save"


@pytest.mark.parametrize(("module", "debugged"), [("pdb", True), ("bdb", True), ("somewhere", False)])
def test_a_process_in_a_debugger_is_known(module: str, debugged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, **kwargs: "\nTracerPid:\t0\n")
    namespace: dict[str, Any] = {"__name__": module, "ask": watchdog._is_debugged}
    exec("def interact():\n    return ask()\n", namespace)
    assert namespace["interact"]() is debugged


def test_a_process_that_is_traced_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, **kwargs: "Name:\tpython\nTracerPid:\t4711\n")
    assert watchdog._is_debugged()


def test_a_run_that_stands_still_is_told_of_before_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    arguments = SimpleNamespace(process_index=0, world_size=1, torch_compile=False)
    trainer: Any = SimpleNamespace(args=arguments, fixed_shapes=False)
    monkeypatch.setattr(watchdog, "_leave", lambda: done.append("left"))
    for number in (0, 1):
        dog = Watchdog(trainer, 60, done.append)
        dog._standing.excuse = "" if number else "an evaluation or a save"
        dog._speak()
    told, left = done
    assert told.startswith("The training stood still for 60 seconds (--stall_timeout): process pid ")
    assert left == "left"
