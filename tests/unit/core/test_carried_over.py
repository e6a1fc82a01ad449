"""What was changed and allowed acts from the first resumed step; what was not stays as the checkpoint has it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerState, TrainingArguments, get_scheduler

from vlm_lora.errors import ConfigError
from vlm_lora.training.checkpoints.carried_over import CarriedOver
from vlm_lora.training.checkpoints.changed_settings import Change
from vlm_lora.training.checkpoints.contents import STATE_FILE
from vlm_lora.training.checkpoints.setting_kinds import Kind
from vlm_lora.training.identity.record import RunIdentity

SETTINGS = {"lr_scheduler_type": "linear"}


def carry(settings: dict[str, Any], changes: Sequence[Change] = ()) -> CarriedOver:
    return CarriedOver(RunIdentity(settings=settings, versions={}), changes)


def change(name: str, saved: Any, now: Any) -> Change:
    return Change(name=name, saved=saved, now=now, kind=Kind.CHANGES_RESULT)


def built(*, steps: int, lr: float = 0.1, decay: float = 0.5, kind: str = "linear", **more: Any) -> tuple[Any, Any]:
    """An optimizer with a part of its own rate and a group without decay, and its schedule."""
    layers = [nn.Linear(2, 2) for _ in range(2)]
    groups = [
        {"params": [layers[0].weight], "weight_decay": decay},
        {"params": [layers[1].weight], "weight_decay": decay, "lr": lr / 10},
        {"params": [layers[0].bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, **more)
    return optimizer, get_scheduler(kind, optimizer, num_warmup_steps=0, num_training_steps=steps)


def resumed(
    tmp_path: Path, *changes: Change, steps: int = 4, taken: int = 2, settings: dict[str, Any] = SETTINGS, **more: Any
) -> tuple[Any, Any]:
    """Take some of four steps, save, and go on in another optimizer as the trainer does."""
    first, schedule = built(steps=4)
    for _ in range(taken):
        first.step()
        schedule.step()
    (tmp_path / STATE_FILE).write_text(json.dumps({"max_steps": 4}))
    carried = carry(settings, changes)
    optimizer, anew = built(steps=steps, **more)
    carried.note_optimizer(optimizer)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"]
    carried.note_steps(steps)
    optimizer.load_state_dict(first.state_dict())
    anew.load_state_dict(schedule.state_dict())
    carried.put_in_force(optimizer, anew, str(tmp_path))
    return optimizer, anew


def rates(optimizer: Any) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def test_without_a_change_all_is_as_loaded(tmp_path: Path) -> None:
    optimizer, schedule = resumed(tmp_path, lr=7.0, decay=7.0)
    assert rates(optimizer) == schedule.get_last_lr() == [0.1 * 0.5, 0.01 * 0.5, 0.1 * 0.5]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.5, 0.0]


def test_a_changed_rate_acts_in_each_group(tmp_path: Path) -> None:
    optimizer, schedule = resumed(tmp_path, change("learning_rate", 0.1, 0.4), lr=0.4, decay=7.0)
    assert rates(optimizer) == schedule.get_last_lr() == pytest.approx([0.2, 0.02, 0.2])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.5, 0.0], "not allowed"
    optimizer.step()
    schedule.step()
    assert rates(optimizer) == pytest.approx([0.1, 0.01, 0.1]), "a quarter of the new rate"


def test_decay_betas_and_epsilon(tmp_path: Path) -> None:
    changes = [change("weight_decay", 0.5, 0.9), change("adam_beta2", 0.999, 0.9), change("adam_epsilon", 1e-8, 1e-3)]
    optimizer, _ = resumed(tmp_path, *changes, decay=0.9, betas=(0.9, 0.9), eps=1e-3, lr=7.0)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.9, 0.9, 0.0]
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.9)}
    assert {group["eps"] for group in optimizer.param_groups} == {1e-3}
    assert rates(optimizer) == [0.1 * 0.5, 0.01 * 0.5, 0.1 * 0.5]


def test_another_schedule(tmp_path: Path) -> None:
    settings = {"lr_scheduler_type": "cosine"}
    optimizer, _ = resumed(
        tmp_path, change("lr_scheduler_type", "linear", "cosine"), kind="cosine", taken=3, settings=settings
    )
    assert rates(optimizer)[0] == pytest.approx(0.1 * (1 + torch.tensor(0.75 * torch.pi).cos().item()) / 2)


def test_more_steps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first step of a longer run had the rate that the shorter one ended with: 0."""
    longer = Change(name="max_steps", saved=4, now=8, kind=Kind.FREE)
    optimizer, _ = resumed(tmp_path, longer, steps=8, taken=4)
    assert rates(optimizer) == pytest.approx([0.05, 0.005, 0.05])
    assert (
        "--max_steps 8, 4 in the checkpoint's run: the linear schedule is now laid over 8 steps: the rate of step 5 is "
        "0.05 instead of 0." in caplog.text
    )


def test_an_engine_that_drops_empty_groups(tmp_path: Path) -> None:
    carried = carry(SETTINGS, [change("weight_decay", 0.5, 0.9)])
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([{"params": [], "weight_decay": 0.0}, {"params": [weight], "weight_decay": 0.9}])
    carried.note_optimizer(optimizer)
    (tmp_path / STATE_FILE).write_text("{}")
    optimizer.param_groups[:] = [{**optimizer.param_groups[1], "weight_decay": 0.5}]
    carried.put_in_force(optimizer, None, str(tmp_path))
    assert optimizer.param_groups[0]["weight_decay"] == 0.9
    optimizer.param_groups.extend([optimizer.param_groups[0]] * 2)
    with pytest.raises(ConfigError, match="--allow_changed weight_decay: the engine regrouped"):
        carried.put_in_force(optimizer, None, str(tmp_path))


def test_a_schedule_that_cannot_be_laid_anew(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_text('{"max_steps": 4}')
    carried = carry({"lr_scheduler_type": "own"}, [change("warmup_steps", 0, 1)])
    carried.note_steps(4)
    with pytest.raises(ConfigError, match="--allow_changed warmup_steps: the schedule own cannot be laid anew"):
        carried.put_in_force(built(steps=4)[0], object(), str(tmp_path))


@pytest.mark.parametrize("metric", [True, False])
def test_the_cadence_is_that_of_this_run(metric: bool, tmp_path: Path) -> None:
    """The trainer goes by its state's, which comes from the checkpoint."""
    arguments = TrainingArguments(str(tmp_path), save_steps=3, logging_steps=2, use_cpu=True, report_to="none")
    state = TrainerState(save_steps=500, logging_steps=10, max_steps=9, best_metric=1.0, best_global_step=2)
    changes = [change("metric_for_best_model", "loss", "eval_perplexity")] if metric else []
    carry(SETTINGS, changes).callback().on_train_begin(arguments, state, None)
    assert (state.save_steps, state.logging_steps) == (3, 2)
    assert state.best_metric == (None if metric else 1.0)


def test_generators_start_anew_with_another_seed_alone() -> None:
    assert carry(SETTINGS, [change("seed", 1, 2)]).reseeds
    assert not carry(SETTINGS, [change("data_seed", 1, 2)]).reseeds
