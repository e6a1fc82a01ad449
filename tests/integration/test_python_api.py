"""The verbs as functions: several calls in one process, which is left as it was found."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vlm_lora
from support.rows import write_uneven_rows
from support.warm import warmed
from vlm_lora import UserError, configure
from vlm_lora.backend import called, installed
from vlm_lora.config.declaration import Declaration

EXAMPLE = Path(__file__).parents[2] / "examples" / "python_api.py"
QUIET = {"use_cpu": True, "disable_tqdm": True, "dataloader_num_workers": 0}


def state() -> dict[str, Any]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    return {
        "environment": {name: text for name, text in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "signals": [signal.getsignal(number) for number in numbers],
        "handlers": list(logging.root.handlers),
        "levels": [logging.root.level, logging.getLogger("vlm_lora").level],
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_uneven_rows(tmp_path_factory.mktemp("rows") / "data", rows=6, validation=2)


def test_every_verb_in_one_process_which_stays_as_it_was(
    data: Path, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model, output = model_folder("gemma3"), tmp_path / "out"
    before = state()
    common = {"model_name_or_path": model, "dataset_name": data, **QUIET}
    report = vlm_lora.check(configure(**common), workers=0)
    assert {name: split.rows for name, split in report.splits.items()} == {"train": 6, "validation": 2}
    assert len(vlm_lora.preview(configure(**common), rows=2)) == 2
    assert vlm_lora.plan(configure(**common)).verdicts[0].plan.total > 0
    run = configure(**common, output_dir=output, max_steps=2, save_strategy="no", lora_r=4)
    assert run.tuning.lora_rank == 4
    figures = vlm_lora.train(run)
    again = vlm_lora.evaluate(
        configure(model_name_or_path=output, dataset_name=data, output_dir=tmp_path / "eval", **QUIET)
    )
    assert again["eval_perplexity"] == pytest.approx(figures["eval_perplexity"], rel=1e-6)
    answer = vlm_lora.ask(configure(model_name_or_path=output, max_new_tokens=2, **QUIET), "What is it?")
    assert isinstance(answer, str)
    after = state()
    assert after["environment"].items() ^ before["environment"].items() == set()
    assert after == before


def test_what_a_user_can_fix_is_raised(tmp_path: Path) -> None:
    before = state()
    with pytest.raises(UserError, match="These flags are missing"):
        vlm_lora.train(configure())
    with pytest.raises(UserError, match="--lerning_rate is not a known key"):
        vlm_lora.evaluate(configure(lerning_rate=1, model_name_or_path=tmp_path, dataset_name=tmp_path))
    with pytest.raises(UserError, match="it has no config"):
        vlm_lora.ask(configure(model_name_or_path=tmp_path, use_cpu=True), "What?")
    with pytest.raises(UserError, match="--lora_rank 0"):
        configure(lora_rank=0)
    assert state() == before


def test_a_variable_that_comes_too_late_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = installed()["cpu"]
    early = Declaration(logger="x", before_torch=frozenset({"CARD_MODE"}))
    monkeypatch.setattr(type(backend), "declaration", early)
    monkeypatch.setattr(type(backend), "environment", lambda self, run: {"CARD_MODE": "1"})
    with pytest.raises(UserError, match="CARD_MODE=1 must be set before torch is imported"), called(configure()):
        pass
    monkeypatch.setenv("CARD_MODE", "1")
    with called(configure()):
        assert os.environ["CARD_MODE"] == "1"


def test_a_launcher_may_ask_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert configure().backend == "auto"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert configure().backend == "cpu"
    with pytest.raises(UserError, match="ACCELERATE_USE_CPU=true contradict"):
        configure(backend="cuda")


def test_importing_it_imports_no_torch() -> None:
    code = (
        "import sys, vlm_lora\n"
        "from vlm_lora import RunConfig, ask, check, configure, evaluate, plan, preview, train\n"
        "configure(learning_rate=1e-4)\n"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_names_are_there_and_no_others() -> None:
    assert all(hasattr(vlm_lora, name) for name in vlm_lora.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        getattr(vlm_lora, "trian")  # noqa: B009 - as a program would ask


def test_the_example(data: Path, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    words = [sys.executable, str(EXAMPLE), str(model_folder("gemma3")), str(data), str(tmp_path / "out")]
    done = subprocess.run(warmed(words), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "{'train': 6, 'validation': 2} bad rows: 0"
    assert len([line for line in lines if "perplexity" in line]) == 2
    wrong = subprocess.run(warmed([*words[:2], "./nowhere", *words[3:]]), capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert wrong.stderr.strip() == "error: ./nowhere: no such folder. Give an existing folder, or a Hub id such as " + (
        "google/gemma-3-4b-it."
    )
