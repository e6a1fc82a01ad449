"""Parts of the model that stay as they are, and parts that move at a rate of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from support.rows import write_uneven_rows
from support.runs import capture_trainer, logged, run, script_flags, with_trainer
from vlm_lora.cli.main import run_script
from vlm_lora.model.parts import Parts, find_parts

PARTS = ("language", "vision", "projector", "embeddings", "head")
ALL = {"peft_method": "none", "freeze_vision": False}
SGD = {"do_train": True, "max_steps": 1, "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0}
RATES = {"language": 3e-3, "vision": 2e-2, "projector": 7e-3, "embeddings": 5e-2, "head": 1e-2}


class Recorder(TrainerCallback):
    """Weights before the first step and gradients at it, by parameter name."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.before = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.gradients:
            named = self.model.named_parameters()
            self.gradients = {name: p.grad.detach().clone() for name, p in named if p.grad is not None}

    def moved(self) -> dict[str, torch.Tensor]:
        return {name: p.detach() - self.before[name] for name, p in self.model.named_parameters()}


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """A list that the next runs put their recorder into."""
    found: list[Recorder] = []

    def record(built: Any) -> None:
        found.append(Recorder(built.model))
        built.add_callback(found[-1])

    with_trainer(monkeypatch, record)
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_uneven_rows(tmp_path_factory.mktemp("rows") / "data", rows=6, validation=2)


def parts_that_moved(recorder: Recorder) -> set[str]:
    parts = find_parts(recorder.model)
    return {parts.part_of(name) for name, change in recorder.moved().items() if change.any()}


# Each part is frozen in another set of these runs, so that no two of them can be mixed up.
TOGETHER = (("language", "projector", "head"), ("vision", "projector"), ("embeddings", "head"))


@pytest.mark.parametrize("frozen", TOGETHER, ids=" ".join)
def test_a_frozen_part_stays_bit_for_bit_and_the_others_move(
    frozen: tuple[str, ...],
    model_folder: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    recorders: list[Recorder],
) -> None:
    """LLaVA's head is not tied to its embeddings: all five parts are there."""
    flags = {**ALL, **{f"freeze_{part}": True for part in frozen}}
    flags["freeze_embeddings"], flags["freeze_head"] = "embeddings" in frozen, "head" in frozen
    run(model_folder("llava"), data, tmp_path / "out", do_train=True, max_steps=2, learning_rate=1e-3, **flags)
    assert parts_that_moved(recorders[0]) == set(PARTS) - set(frozen)
    saved = load_file(tmp_path / "out" / "model.safetensors")
    plain = load_file(model_folder("llava") / "model.safetensors")
    assert {torch.equal(tensor, plain[name]) for name, tensor in saved.items()} == {True, False}


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_each_part_moves_at_its_own_rate(
    name: str, model_folder: Callable[[str], Path], data: Path, tmp_path: Path, recorders: list[Recorder]
) -> None:
    """One step of SGD: the change divided by the gradient is the rate, decay or no decay."""
    flags = {f"{part}_learning_rate": RATES[part] for part in ("vision", "projector", "head")}
    run(model_folder(name), data, tmp_path / "out", **SGD, **ALL, **flags, learning_rate=1e-3)
    check_rates(
        recorders[0],
        {
            **dict.fromkeys(PARTS, 1e-3),
            **{part: RATES[part] for part in RATES if part in ("vision", "projector", "head")},
        },
    )


def test_a_tied_head_moves_with_the_embeddings(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, recorders: list[Recorder]
) -> None:
    flags = {f"{part}_learning_rate": RATES[part] for part in ("embeddings", "language")}
    run(model_folder("gemma3"), data, tmp_path / "out", **SGD, **ALL, **flags, learning_rate=1e-3)
    check_rates(recorders[0], {"embeddings": 5e-2, "language": 3e-3, "vision": 1e-3, "projector": 1e-3})
    assert "lm_head.weight" not in recorders[0].gradients


def test_lora_parts_have_their_rates_too(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, recorders: list[Recorder]
) -> None:
    flags = {"lora_targets": "all", "vision_learning_rate": 2e-2, "projector_learning_rate": 7e-3}
    run(model_folder("llava"), data, tmp_path / "out", **SGD, **flags, learning_rate=1e-3)
    check_rates(recorders[0], {"language": 1e-3, "vision": 2e-2, "projector": 7e-3})


def test_without_rates_all_move_at_the_same(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, recorders: list[Recorder]
) -> None:
    """The control: the check of a part's rate fails where it has not got it."""
    run(model_folder("llava"), data, tmp_path / "out", **SGD, **ALL, learning_rate=1e-3)
    check_rates(recorders[0], dict.fromkeys(PARTS, 1e-3))
    with pytest.raises(AssertionError):
        check_rates(recorders[0], {**dict.fromkeys(PARTS, 1e-3), "vision": 2e-2})


def check_rates(recorder: Recorder, rates: dict[str, float]) -> None:
    parts: Parts = find_parts(recorder.model)
    moved = recorder.moved()
    seen = set()
    for name, gradient in recorder.gradients.items():
        if gradient.abs().max() < 1e-5:
            continue  # LoRA's A in the first step, whose B is zero
        part = parts.part_of(name)
        seen.add(part)
        # In fp32 the change of a weight near 1 is known to about 1e-7.
        torch.testing.assert_close(-moved[name], rates[part] * gradient, atol=3e-7, rtol=2e-3, msg=name)
    assert seen == set(rates)


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "sgd"])
def test_groups_keep_decay_and_the_schedule_scales_each(
    optim: str, model_folder: Callable[[str], Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = capture_trainer(monkeypatch)
    flags = {"vision_learning_rate": 1e-5, "head_learning_rate": 4e-4, "learning_rate": 1e-3, "weight_decay": 0.1}
    output = tmp_path / "out"
    run(model_folder("llava"), data, output, **ALL, **flags, do_train=True, max_steps=4, optim=optim, logging_steps=1)
    trainer = trainers[0]
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    parts = find_parts(trainer.model)
    wanted = {"vision": 1e-5, "head": 4e-4}
    grouped = []
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            grouped.append(name)
            assert group["initial_lr"] == wanted.get(parts.part_of(name), 1e-3), name
            assert group["weight_decay"] == (0.1 if name in decayed else 0.0), name
    assert sorted(grouped) == sorted(name for name, p in trainer.model.named_parameters() if p.requires_grad)
    # Linear from the rate to zero over four steps, logged per part.
    share = [1 - step / 4 for step in (1, 2, 3, 4)]
    for key, rate in {"learning_rate": 1e-3, "learning_rate_vision": 1e-5, "learning_rate_head": 4e-4}.items():
        found = logged(output, key)
        assert found == pytest.approx([rate * s for s in share]) or found == pytest.approx(
            [rate * s for s in [1.0, *share[:3]]]
        )


def test_resuming_equals_never_stopping(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags: dict[str, object] = {
        **ALL,
        "do_train": True,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "vision_learning_rate": 1e-2,
        "learning_rate": 1e-3,
    }
    run(model_folder("llava"), data, tmp_path / "whole", **flags)
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    run(model_folder("llava"), data, tmp_path / "resumed", **flags, resume_from_checkpoint=checkpoint)
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    for changes, words in (
        ({"vision_learning_rate": 2e-2}, ("--vision_learning_rate 0.01 in the checkpoint, 0.02 now",)),
        ({"head_learning_rate": 2e-2}, ("checkpoint-2", "groups")),
    ):
        capsys.readouterr()
        again = {**flags, **changes, "resume_from_checkpoint": checkpoint}
        assert run_script(script_flags(model_folder("llava"), data, tmp_path / "other", **again)) == 1
        message = capsys.readouterr().err
        for word in words:
            assert word in message


def test_the_log_shows_the_rate_of_each_part(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"lora_targets": "all", "vision_learning_rate": 5e-5, "learning_rate": 2e-4, "log_level": "info"}
    run(model_folder("llava"), data, tmp_path / "out", do_train=True, max_steps=1, **flags)
    table = [line.split() for line in capsys.readouterr().err.splitlines() if "%" in line]
    rates = {line[0]: line[4] for line in table if len(line) == 5}
    assert rates == {"language": "0.0002", "vision": "5e-05", "projector": "0.0002"}


WRONG: dict[str, tuple[str, dict[str, object], tuple[str, ...]]] = {
    "rate of 0": ("llava", {**ALL, "vision_learning_rate": 0}, ("--vision_learning_rate 0", "--freeze_vision")),
    "rate of a frozen part": (
        "llava",
        {"peft_method": "none", "vision_learning_rate": 1e-5},
        ("--vision_learning_rate", "frozen", "--freeze_vision false"),
    ),
    "rate of a part without LoRA": (
        "llava",
        {"vision_learning_rate": 1e-5},
        ("--vision_learning_rate", "--lora_targets"),
    ),
    "rate of the head with LoRA": ("llava", {"head_learning_rate": 1e-5}, ("--head_learning_rate", "no LoRA")),
    "rate of a tied head": (
        "gemma3",
        {**ALL, "head_learning_rate": 1e-5},
        ("--head_learning_rate", "--embeddings_learning_rate"),
    ),
    "half of a tied pair": (
        "gemma3",
        {**ALL, "freeze_head": True},
        ("--freeze_head true", "--freeze_embeddings false (as the language model)", "tie_word_embeddings"),
    ),
    "optimizer without rates": (
        "llava",
        {**ALL, "vision_learning_rate": 1e-5, "optim": "galore_adamw_layerwise", "optim_target_modules": "q_proj"},
        ("--optim galore_adamw_layerwise",),
    ),
    "freezing what LoRA is on": ("llava", {"freeze_language": True}, ("--peft_method none", "--lora_targets")),
}


@pytest.mark.parametrize("name", WRONG)
def test_refusals(
    name: str,
    model_folder: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, flags, words = WRONG[name]
    command = script_flags(model_folder(model), data, tmp_path / "out", do_train=True, max_steps=1, **flags)
    assert run_script(command) == 1
    printed = capsys.readouterr().err
    assert printed.count("error: ") == 1, printed
    for word in words:
        assert word in printed, printed


def test_run_config_repeats_the_rates(model_folder: Callable[[str], Path], data: Path, tmp_path: Path) -> None:
    flags = {**ALL, "vision_learning_rate": 1e-5, "freeze_embeddings": True}
    run(model_folder("llava"), data, tmp_path / "out", do_train=True, max_steps=1, **flags)
    words = ["--config", str(tmp_path / "out" / "run_config.yaml"), "--output_dir", str(tmp_path / "again")]
    assert run_script(words) == 0
    state = json.loads((tmp_path / "again" / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == 1
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)
