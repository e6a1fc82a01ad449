"""SIGTERM, SIGUSR1, Ctrl-C: a checkpoint at a step that all ranks agree on, exit code 75; the run goes on from it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch._C._distributed_c10d import HashStore
from transformers import TrainerCallback

from support.process import find_rank
from support.rows import write_uneven_rows
from support.runs import run, script_flags, with_callback
from support.warm import warmed
from vlm_lora.cli.main import main, run_script
from vlm_lora.training.outputs import save_final
from vlm_lora.training.signals import Agreement

VLM_LORA = Path(sys.executable).with_name("vlm-lora")
ADAPTER = "adapter_model.safetensors"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_uneven_rows(tmp_path / "data", rows=6, validation=2)


def told_at(step: int, number: int, monkeypatch: pytest.MonkeyPatch, *, measuring: bool = False) -> None:
    """Let the next run get a signal while it takes this step, or in the evaluation after it."""

    class Tell(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step + 1 == step and not measuring:
                os.kill(os.getpid(), number)

        def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step and measuring:
                os.kill(os.getpid(), number)

    with_callback(monkeypatch, Tell())


@pytest.mark.parametrize(
    ("step", "number", "measuring"),
    [(2, signal.SIGTERM, False), (2, signal.SIGUSR1, True), (4, signal.SIGINT, False)],
)
def test_a_run_that_was_told_goes_on_as_if_it_had_not_been(
    step: int,
    number: signal.Signals,
    measuring: bool,
    model_folder: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also in its last step; and though it saves nothing by itself and keeps the best checkpoint only.

    With dropout, whose draws follow those of the evaluation that it leaves.
    """
    best = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1} if step == 2 else {}
    limit = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "save_total_limit": 1} if best else {}
    # The best may be the one whose evaluation is left, and made when the run goes on.
    # The checkpoint that the signal asks for is complete whatever the others are.
    alone = {} if best else {"save_only_model": True}
    flags = {
        "do_train": True,
        "do_eval": True,
        "max_steps": 4,
        "learning_rate": 1.0,
        "lora_dropout": 0.2,
        **best,
        **limit,
        **alone,
    }
    whole, told = tmp_path / "whole", tmp_path / "told"
    run(model_folder("gemma3"), data, whole, **flags)
    with monkeypatch.context() as patch:
        told_at(step, number, patch, measuring=measuring)
        assert run_script(script_flags(model_folder("gemma3"), data, told, **flags)) == 75
    said = capsys.readouterr().err
    name = "Ctrl-C" if number == signal.SIGINT else number.name
    assert f"{name}: ended after step {step} of 4, which is saved." in said
    assert "Traceback" not in said
    assert signal.getsignal(number) is (signal.default_int_handler if name == "Ctrl-C" else signal.SIG_DFL)
    assert (told / f"checkpoint-{step}" / "trainer_state.json").exists()
    assert not (told / "all_results.json").exists(), "by which train.sbatch knows a run that is done"
    state = json.loads((told / "RUN_STATE.json").read_text(encoding="utf-8"))
    assert [state[key] for key in ("state", "step", "steps", "checkpoint", "pid")] == [
        *("preempted", step, 4, f"checkpoint-{step}", os.getpid())
    ]
    assert state["reason"].startswith(f"{name}: ended after step {step} of 4")
    run(model_folder("gemma3"), data, told, **flags, resume_from_checkpoint="true")
    for weights in [ADAPTER, *([f"checkpoint-4/{ADAPTER}"] if best else [])]:
        assert (told / weights).read_bytes() == (whole / weights).read_bytes(), weights
    figures = [json.loads((folder / "all_results.json").read_text(encoding="utf-8")) for folder in (whole, told)]
    assert "train_resumed_at_step" not in figures[0]
    if step < 4:
        logged = json.loads((told / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        losses = [entry["loss"] for entry in logged if "loss" in entry and entry["step"] > step]
        assert figures[1]["train_resumed_at_step"] == step
        assert figures[1]["train_since_resume_loss"] == pytest.approx(sum(losses) / (4 - step), rel=1e-3)
        assert figures[1]["train_since_resume_loss"] != pytest.approx(figures[0]["train_loss"], rel=1e-3)
        assert figures[1]["train_loss"] == pytest.approx(figures[0]["train_loss"], rel=1e-6), "of all four"
    capsys.readouterr()
    assert main(["runs", str(tmp_path), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(run["run"], run["state"], run["step"], run["steps"]) for run in listed] == [
        ("told", "done", 4, 4),
        ("whole", "done", 4, 4),
    ]
    assert listed[0]["best"] == listed[1]["best"]
    assert (listed[1]["best"] is not None) == bool(best)
    assert listed[1]["metric"] == "loss"
    assert main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[:5] == ["whole", "done", "4", "of", "4"]


@pytest.mark.parametrize("saves", [True, False])
@pytest.mark.parametrize("measuring", [True, False])
def test_a_run_that_is_told_behind_its_last_step_has_it_saved(
    measuring: bool,
    saves: bool,
    model_folder: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In its last evaluation, or while its weights are being saved; it goes on to that evaluation."""

    def told_first(trainer: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save_final(trainer)

    out, saving = tmp_path / "out", {"save_strategy": "steps" if saves else "no", "save_steps": 2}
    flags = script_flags(model_folder("gemma3"), data, out, do_train=True, do_eval=True, max_steps=2, **saving)
    with monkeypatch.context() as patch:
        if measuring:
            told_at(2, signal.SIGTERM, patch, measuring=True)
        else:
            patch.setattr("vlm_lora.pipeline.save_final", told_first)
        assert run_script(flags) == 75
    where = "in the evaluation after the last step (2)" if measuring else "after the last step (2)"
    assert f"SIGTERM: ended {where}, which is saved. To go on: " in capsys.readouterr().err
    assert (out / "train_results.json").exists()
    assert not (out / "eval_results.json").exists()
    assert json.loads((out / "RUN_STATE.json").read_text(encoding="utf-8"))["checkpoint"] == "checkpoint-2"
    before = (out / ADAPTER).read_bytes()
    assert run_script([*flags, "--resume_from_checkpoint", "auto"]) == 0
    assert "nothing is left to train" in json.loads((out / "RUN_STATE.json").read_text(encoding="utf-8"))["reason"]
    assert (out / "eval_results.json").exists()
    assert (out / ADAPTER).read_bytes() == before


def start(launcher: str, model: Path, data: Path, output: Path, **flags: object) -> subprocess.Popen[str]:
    words = script_flags(model, data, output, **{"log_level": "info", "do_eval": False, "ddp_backend": "gloo", **flags})
    own = [launcher] if launcher else []
    return subprocess.Popen(
        warmed([VLM_LORA, "launch", "--backend", "cpu", *own, "--world_size", "2", "train", *words]),
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_until(stream: Any, mark: str) -> Iterator[str]:
    for line in stream:
        yield line
        if mark in line:
            return


@pytest.mark.parametrize(
    ("launcher", "whom", "number"),
    [
        ("", "all", signal.SIGINT),
        ("", "rank 1", signal.SIGTERM),
        ("--use_deepspeed", "all", signal.SIGTERM),
        ("--use_accelerate", "all", signal.SIGUSR1),
    ],
)
def test_two_ranks_end_at_the_same_step(
    launcher: str,
    whom: str,
    number: signal.Signals,
    model_folder: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
) -> None:
    """The launcher hands each signal on as SIGUSR1, which no launcher limits.

    It never reaches the ranks in the same step; where rank 1 alone gets one, rank 0 saves all the same.
    """
    out = tmp_path / "out"
    process = start(launcher, model_folder("gemma3"), data, out, max_steps=100_000, logging_steps=100)
    lines: list[str] = []
    late = threading.Timer(240, process.kill)
    late.start()
    with process:
        assert process.stderr is not None
        lines += read_until(process.stderr, "Gradient audit")  # the first step
        if whom == "all":
            process.send_signal(number)
        else:
            os.kill(find_rank(1, out), number)
        begun = time.monotonic()
        lines += process.stderr
        code = process.wait(timeout=60)
    late.cancel()
    text = "".join(lines)
    assert code == 75, text
    assert time.monotonic() - begun < 60
    by = "SIGUSR1" if whom == "all" else "A signal to another process"
    steps = re.findall(rf"{by}: saving checkpoint-(\d+) and ending", text)
    assert len(steps) == 1, text
    assert f"{by}: ended after step {steps[0]} of 100000, which is saved." in text
    assert lines[-1] == "The run ended with exit code 75.\n"
    assert "Traceback" not in text
    assert [path.name for path in out.glob("checkpoint-*")] == [f"checkpoint-{steps[0]}"]
    files = {path.name for path in (out / f"checkpoint-{steps[0]}").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "trainer_state.json", ADAPTER} <= files
    if whom == "rank 1":
        more = start("", model_folder("gemma3"), data, out, max_steps=int(steps[0]) + 2, resume_from_checkpoint="true")
        errors = more.communicate(timeout=200)[1]
        assert more.returncode == 0, errors
        assert (out / ADAPTER).exists()


def test_two_ranks_leave_the_last_evaluation_together_and_save_the_last_step(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    data, out = write_uneven_rows(tmp_path / "data", rows=4, validation=400), tmp_path / "out"
    flags: dict[str, object] = {"max_steps": 1, "do_eval": True, "per_device_eval_batch_size": 1}
    process = start("", model_folder("gemma3"), data, out, **flags)
    late = threading.Timer(240, process.kill)
    late.start()
    with process:
        assert process.stderr is not None
        lines = list(read_until(process.stderr, "Running Evaluation"))
        os.kill(find_rank(1, out), signal.SIGTERM)
        lines += process.stderr
        code = process.wait(timeout=60)
    late.cancel()
    text = "".join(lines)
    assert code == 75, text
    said = "A signal to another process: ended in the evaluation after the last step (1), which is saved. To go on: "
    assert text.count(said) == text.count(", which is saved.") == 1, text
    assert json.loads((out / "RUN_STATE.json").read_text(encoding="utf-8"))["checkpoint"] == "checkpoint-1"
    assert {"rng_state_0.pth", "rng_state_1.pth", ADAPTER} <= {path.name for path in (out / "checkpoint-1").iterdir()}
    assert not (out / "eval_results.json").exists()


def test_ranks_agree_whoever_is_told_and_when() -> None:
    """Three ranks of different pace; the slowest is told in its fifth step."""
    store, answers = HashStore(), {rank: list[bool]() for rank in range(3)}

    def take_steps(rank: int) -> None:
        agreement = Agreement(store, 3, timedelta(seconds=20))
        for step in range(8):
            time.sleep(0.01 * rank)
            answers[rank].append(agreement.any_told(rank == 2 and step >= 4))

    ranks = [threading.Thread(target=take_steps, args=(rank,)) for rank in range(3)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join(timeout=60)
    assert answers == dict.fromkeys(range(3), [False] * 5 + [True] * 3)
    assert store.num_keys() <= 2, "what all have read is removed"


def test_a_run_that_was_cut_short_behind_its_training_begins_again(
    model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No checkpoint holds the end of such a run; the same command makes it again, and no other one touches it."""
    data = write_uneven_rows(tmp_path / "data", rows=4, validation=2)
    flags = {"do_train": True, "do_eval": True, "max_steps": 1, "save_strategy": "no", "learning_rate": 1e-2}
    output, auto = tmp_path / "out", {"resume_from_checkpoint": "auto"}
    weights = output / "adapter_model.safetensors"

    def start(**changes: object) -> int:
        return main(["train", *script_flags(model_folder("gemma3"), data, output, **flags | auto | changes)])

    assert start() == 0
    whole = weights.read_bytes()
    assert start() == 1, "the control: a run that is done is not made again"
    assert "already holds a run" in capsys.readouterr().err
    state = json.loads((output / "RUN_STATE.json").read_text(encoding="utf-8"))
    (output / "RUN_STATE.json").write_text(json.dumps({**state, "state": "preempted"}), encoding="utf-8")
    assert start(learning_rate=1e-3) == 1
    assert "--learning_rate" in capsys.readouterr().err
    assert weights.read_bytes() == whole
    assert start() == 0
    assert weights.read_bytes() == whole
    assert json.loads((output / "RUN_STATE.json").read_text(encoding="utf-8"))["state"] == "done"
