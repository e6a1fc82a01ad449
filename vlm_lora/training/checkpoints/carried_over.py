"""What a checkpoint's own state would overrule on resuming: rates, decay, schedule, generators, and the cadence.

The optimizer comes back with the rate, decay and betas that it was saved with, the schedule with its base rates, and
the trainer's state with the steps between two logs, evaluations and checkpoints. Where these were changed, what was
asked for takes their place; where nothing changed, nothing is touched, and the run is bitwise the one never stopped.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from vlm_lora.errors import ConfigError
from vlm_lora.training.checkpoints.changed_settings import Change
from vlm_lora.training.checkpoints.contents import STATE_FILE
from vlm_lora.training.checkpoints.setting_kinds import PART_RATES
from vlm_lora.training.identity.record import RunIdentity, write_identity

logger = logging.getLogger(__name__)

_RATES = ("learning_rate", *PART_RATES)

GROUP_KEYS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(_RATES, ("lr", "initial_lr")),
    "weight_decay": ("weight_decay",),
    "adam_beta1": ("betas",),
    "adam_beta2": ("betas",),
    "adam_epsilon": ("eps",),
    "optim": ("fused", "foreach"),
}
"""Settings that an optimizer keeps in its groups, and under what keys."""

SCHEDULE = frozenset({*_RATES, "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"})
BEST = frozenset({"load_best_model_at_end", "metric_for_best_model", "greater_is_better"})


class CarriedOver:
    """A run's record: kept in its checkpoints, and its settings put in force where it goes on from one.

    Args:
        identity: the record of this run.
        changes: since the checkpoint's run, all free or allowed; none where the run begins.
    """

    def __init__(self, identity: RunIdentity, changes: Iterable[Change] = ()) -> None:
        self._identity = identity
        self._settings = identity.settings
        self._changes = {change.name: change for change in changes}
        self._asked: list[dict[str, Any]] = []
        """What each of the optimizer's groups was made with."""
        self._filled: list[bool] = []
        """Whether the group has weights: engines drop those without."""
        self._steps: int | None = None

    @property
    def reseeds(self) -> bool:
        """Whether generators start from the new `--seed` instead of where the checkpoint left them."""
        return "seed" in self._changes

    def settle(self, name: str, value: str) -> None:
        """Record what became of a setting that was left open until the trainer was there."""
        self._settings = {**self._settings, name: value}
        self._identity = replace(self._identity, settings=self._settings)

    def write(self, folder: Path) -> None:
        """Write the record into a checkpoint, or into the run's own folder."""
        write_identity(folder, self._identity)

    def note_optimizer(self, optimizer: Any) -> None:
        """Remember what an optimizer was just made with, before a checkpoint is loaded into it."""
        groups = getattr(optimizer, "param_groups", ())
        keys = {key for names in GROUP_KEYS.values() for key in names}
        self._asked = [
            {**{key: group[key] for key in keys if key in group}, "initial_lr": group.get("lr")} for group in groups
        ]
        self._filled = [bool(len(group["params"])) for group in groups]

    def note_steps(self, steps: int) -> None:
        """Remember how many steps the schedule was just laid over."""
        self._steps = steps

    def put_in_force(self, optimizer: Any, scheduler: Any, checkpoint: str) -> None:
        """Let what was asked for take the place of what came with a checkpoint, and say what becomes of the schedule.

        Raises:
            ConfigError: this optimizer or schedule cannot be changed.
        """
        keys = {key for name in self._changes for key in GROUP_KEYS.get(name, ())}
        state = json.loads((Path(checkpoint) / STATE_FILE).read_text(encoding="utf-8"))
        before = state.get("max_steps")
        changed = SCHEDULE & self._changes.keys()
        moves = bool(changed) or (self._steps is not None and before not in (None, self._steps))
        old = _first_rate(optimizer) if moves else 0.0
        if keys:
            self._set_groups(optimizer, keys)
        if not moves:
            return
        schedule = getattr(scheduler, "scheduler", scheduler)
        kind = self._settings.get("lr_scheduler_type")
        if not isinstance(schedule, LambdaLR):
            if changed:
                raise ConfigError(
                    f"--allow_changed {' '.join(sorted(changed))}: the schedule {kind} cannot be laid anew within a "
                    "run. Give the checkpoint's settings."
                )
            logger.warning(
                "The run has %s steps, %s in the checkpoint's: its %s schedule stays.", self._steps, before, kind
            )
            return
        lay_anew(schedule, optimizer, rates_changed=bool(keys & {"lr"}))
        self._say_schedule(kind, before, schedule.last_epoch + 1, old, _first_rate(optimizer))

    def callback(self) -> TrainerCallback:
        """Return what puts the cadence in force once the trainer has its state."""
        return _Cadence(forget_best=bool(BEST & self._changes.keys()))

    def _set_groups(self, optimizer: Any, keys: set[str]) -> None:
        groups = optimizer.param_groups
        asked = self._asked
        if len(groups) != len(asked):
            asked = [group for group, filled in zip(asked, self._filled, strict=True) if filled]
        if len(groups) != len(asked):
            names = " ".join(sorted(name for name in self._changes if name in GROUP_KEYS))
            raise ConfigError(
                f"--allow_changed {names}: the engine regrouped the optimizer's weights, so nobody knows which value "
                "is whose. Give the checkpoint's settings."
            )
        for group, new in zip(groups, asked, strict=True):
            for key in keys & new.keys():
                _put(group, key, new[key])

    def _say_schedule(self, kind: Any, before: int | None, step: int, old: float, new: float) -> None:
        causes = [
            f"--{name} {self._changes[name].now}, {self._changes[name].saved} in the checkpoint's run"
            for name in ("max_steps", "num_train_epochs", *sorted(SCHEDULE))
            if name in self._changes
        ]
        if before != self._steps and "max_steps" not in self._changes:
            causes.append(f"{self._steps} steps, {before} in the checkpoint's run")
        rate = (
            f"the rate of step {step} is {new:.6g} instead of {old:.6g}"
            if new != old
            else f"the rate of step {step} stays {new:.6g}"
        )
        logger.warning("%s: the %s schedule is now laid over %s steps: %s.", "; ".join(causes), kind, self._steps, rate)


def lay_anew(schedule: LambdaLR, optimizer: Any, *, rates_changed: bool) -> None:
    """Give each group the rate of a schedule's present step; a loaded one still has that of the earlier run."""
    if rates_changed:
        schedule.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    rates = [
        base * scale(schedule.last_epoch) for base, scale in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        _put(group, "lr", rate)
    schedule._last_lr = rates


class _Cadence(TrainerCallback):
    """At the start of a resumed training: steps between logs, evaluations and checkpoints as they are now asked for.

    The trainer takes them from the checkpoint's state.
    """

    def __init__(self, *, forget_best: bool) -> None:
        self._forget_best = forget_best

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count them anew; and where another checkpoint would be the best one now, choose it among those to come."""
        state.compute_steps(args, state.max_steps)
        if self._forget_best:
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None


def _put(group: dict[str, Any], key: str, value: Any) -> None:
    if isinstance(group.get(key), torch.Tensor) and isinstance(value, (int, float)):
        group[key].fill_(value)  # in place: a captured graph reads it
    else:
        group[key] = value


def _first_rate(optimizer: Any) -> float:
    return float(optimizer.param_groups[0]["lr"])
