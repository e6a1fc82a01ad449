"""What is otherwise in a run that goes on from a checkpoint than in the run that wrote it, and what becomes of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlm_lora.config.aliases import DROPPED, RESTATED, aliases
from vlm_lora.config.fields import own_fields
from vlm_lora.config.values import spell
from vlm_lora.errors import ConfigError, nearest
from vlm_lora.training.checkpoints.run_settings import default_settings
from vlm_lora.training.checkpoints.setting_kinds import (
    ADAPTER_FILES,
    BASE_FILES,
    BASE_PLACE,
    FILE_CONTENTS,
    GLOBAL_BATCH,
    MATTERS,
    PART_RATES,
    PATCH_VERSIONS,
    ROWS_DECIDE,
    SPLIT,
    STANDS_ON,
    VERSIONS,
    WORLD_SIZE,
    Kind,
    adapters_flags,
    file_settings,
    kind_of,
    kinds,
    setting_of,
)
from vlm_lora.training.identity.base_model import changed_files, same_files
from vlm_lora.training.identity.record import RunIdentity, read_identity
from vlm_lora.training.identity.versions import split_changes

logger = logging.getLogger(__name__)

_SAME_STATE = frozenset({"adamw_torch", "adamw_torch_fused"})
"""Optimizers that read each other's state: one algorithm in two implementations."""

_BY_LOSS = frozenset({"reduce_lr_on_plateau", "greedy"})
"""Schedules whose present rate is the outcome of the losses so far, so that it cannot be laid anew."""

_OF_THE_SCHEDULE = frozenset({"learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"})
_OF_THE_OPTIMIZER = frozenset({"weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"})
_OF_THE_ENGINE = frozenset({"deepspeed", "bf16", "fp16", "dtype", "backend"})
"""Under DeepSpeed: what decides in which form its checkpoint holds the optimizer."""

NEW_RUN = (
    "A new run may begin with a checkpoint's weights: another --output_dir, no --resume_from_checkpoint, and full "
    "weights named as --model_name_or_path (an adapter is merged into its base first, by PEFT's merge_and_unload)."
)

SAME_CONTENT = "it says the same"
SAME_FILES = "the files are the same"
ROWS_MUST_BE_THE_SAME = "the rows must be the same"

_TAKEN_OVER: Mapping[str, str | None] = {"train_sampling_strategy": None, "cache_vision_features": "auto"}
"""Settings that go on as the checkpoint's run had them where this run leaves them open, and the value that does."""

_SPOKEN = {
    GLOBAL_BATCH: "rows of one step (--per_device_train_batch_size x --gradient_accumulation_steps x processes)",
    WORLD_SIZE: "processes",
    VERSIONS: "version of",
    PATCH_VERSIONS: "version of",
    BASE_FILES: "base model:",
    ADAPTER_FILES: "adapter to begin with:",
}

AGAIN = (
    "Rows, and the files of base model and adapter, must be those of the checkpoint's run, wherever they lie: put them "
    "back as they were."
)


@dataclass(frozen=True, kw_only=True)
class Change:
    """One setting that is otherwise now."""

    name: str
    saved: Any
    now: Any
    kind: Kind
    why: str = ""
    """Why its kind is another one than that of other changes of this setting."""

    @property
    def waits_for_rows(self) -> bool:
        """Whether it is free only if the rows turn out to be the same."""
        return self.why == ROWS_MUST_BE_THE_SAME

    def lines(self, then: str = "in the checkpoint") -> list[str]:
        """Return what to show of it: of a mapping the keys that differ. `then` is what the earlier run is called."""
        spoken = _SPOKEN.get(self.name, f"--{self.name}")
        pairs = [("", self.saved, self.now)]
        if isinstance(self.saved, Mapping) and isinstance(self.now, Mapping):
            before, after = _flat(self.saved), _flat(self.now)
            pairs = [
                (f" {key}:", before.get(key), after.get(key))
                for key in sorted({*before, *after})
                if not _same(before.get(key), after.get(key))
            ]
        return [f"{spoken}{key} {_spoken(saved)} {then}, {_spoken(now)} now" for key, saved, now in pairs]


def _spoken(value: Any) -> str:
    return "not given" if value is None else spell(value)


def check_allowed(names: Iterable[str], arguments_class: type) -> frozenset[str]:
    """Return the settings that `--allow_changed` names.

    Raises:
        ConfigError: a name is no setting, or of one that no run may change.
    """
    known = {*kinds(), *default_settings(arguments_class), *aliases(), *RESTATED}
    found = set()
    for name in (part.strip() for text in names for part in text.split(",")):
        setting = setting_of(name)
        if setting not in known or name in DROPPED:
            raise ConfigError(
                f"--allow_changed {name}: is no setting.{nearest(name, known)} Names are those of the flags without "
                "their dashes."
            )
        if kind_of(setting) is Kind.NEVER and setting != "optim":
            raise ConfigError(
                f"--allow_changed {name}: --{setting} cannot be changed when a run goes on: its optimizer, adapter or "
                f"data would be another's. {NEW_RUN}"
            )
        found.add(setting)
    return frozenset(found)


def compare(
    checkpoint: Path, now: RunIdentity, *, allowed: frozenset[str], arguments_class: type
) -> tuple[list[Change], RunIdentity | None]:
    """Return what changed since a checkpoint's run, having said it, and that run's record.

    Args:
        checkpoint: its folder.
        now: what is known of this run before its rows are read: settings, versions, base model and adapter.
        allowed: from `check_allowed`.
        arguments_class: its defaults stand for settings that the checkpoint's run did not know.

    Returns:
        No changes and None where the checkpoint has no record.

    Raises:
        ConfigError: names everything that changes the result and is not allowed, with both values and what to type.
    """
    record = read_identity(checkpoint)
    if record is None:
        logger.warning(
            "%s: no record of its run's settings, as earlier versions wrote it. Nothing is compared: a changed "
            "--learning_rate or --weight_decay has no effect, and other changes go unseen.",
            checkpoint,
        )
        return [], None
    if not record.is_whole:
        logger.warning(
            "%s: its record, of an earlier version, holds settings and versions alone. Whether base model and rows are "
            "those of its run is not known.",
            checkpoint,
        )
    changes = differences(record.settings, now.settings, defaults=default_settings(arguments_class))
    changes = with_places_settled(changes, record, now, allowed=allowed) + surrounding_changes(record, now)
    refuse(checkpoint, changes, allowed)
    free = [change for change in changes if change.kind is Kind.FREE and not change.waits_for_rows]
    _say("Changed as --allow_changed says", [c for c in changes if c.kind is Kind.CHANGES_RESULT], logging.WARNING)
    _say("Changed since the checkpoint's run", free, logging.INFO)
    dropout = now.settings.get("lora_dropout")
    if dropout and any(change.name in SPLIT for change in free):
        logger.warning(
            "The rows of a step are split otherwise, and what --lora_dropout %s drops is drawn for each part of it: "
            "rows and their order stay, losses will differ from those of the run as it was.",
            dropout,
        )
    return changes, record


def with_places_settled(
    changes: Sequence[Change], before: RunIdentity, now: RunIdentity, *, allowed: frozenset[str] = frozenset()
) -> list[Change]:
    """Let another place be free where the same lies there: files are compared here, rows once they are read.

    Args:
        changes: from `differences`.
        before: the record of the earlier run.
        now: what is known of this run before its rows are read.
        allowed: what `--allow_changed` names: these stay as they are.
    """
    reading = [
        f"--{change.name}"
        for change in changes
        if change.kind is Kind.CHANGES_RESULT and change.name not in ROWS_DECIDE - allowed and reads_rows(change.name)
    ]
    found = []
    for change in changes:
        settled = change
        if change.name == BASE_PLACE and same_files(before.base_model, now.base_model):
            if same_files(before.adapter, now.adapter):
                settled = replace(change, kind=Kind.FREE, why=SAME_FILES)
        elif change.name in ROWS_DECIDE - allowed and before.data and None not in (change.saved, change.now):
            if reading:
                names = " and ".join(reading)
                why = f"together with {names}, by which the rows read otherwise, nobody knows if they are the same"
                settled = replace(change, kind=Kind.NEVER, why=why)
            else:
                settled = replace(change, kind=Kind.FREE, why=ROWS_MUST_BE_THE_SAME)
        found.append(settled)
    return found


def reads_rows(name: str) -> bool:
    """Say whether a setting is one by which rows may read otherwise."""
    fields = own_fields()
    return name in fields and fields[name].section == "data"


def surrounding_changes(before: RunIdentity, now: RunIdentity) -> list[Change]:
    """Return what differs of versions, of the base model's files, and of those of the adapter to begin with."""
    larger, smaller = split_changes(before.versions, now.versions)
    pairs = {
        VERSIONS: larger,
        PATCH_VERSIONS: smaller,
        BASE_FILES: changed_files(before.base_model, now.base_model),
        ADAPTER_FILES: changed_files(before.adapter, now.adapter),
    }
    return [
        Change(
            name=name,
            saved={key: old for key, (old, _) in differing.items()},
            now={key: new for key, (_, new) in differing.items()},
            kind=kind_of(name),
        )
        for name, differing in pairs.items()
        if differing
    ]


def refuse(checkpoint: Path, changes: Sequence[Change], allowed: frozenset[str]) -> None:
    """Refuse what changes the result and is not allowed.

    Raises:
        ConfigError: names each change with both values, and what to type.
    """
    refused = [
        change
        for change in changes
        if change.kind is Kind.NEVER or (change.kind is Kind.CHANGES_RESULT and change.name not in allowed)
    ]
    if refused:
        raise ConfigError(_refusal(checkpoint, refused, allowed))


def differences(saved: Mapping[str, Any], now: Mapping[str, Any], *, defaults: Mapping[str, Any]) -> list[Change]:
    """Return the settings that differ, in order of name; no two for one cause.

    Args:
        saved: a record's settings.
        now: those of this run.
        defaults: for settings that the record does not know. Those that this run does not know are passed over.
    """
    found = []
    elsewhere = saved.get("backend", now.get("backend")) != now.get("backend")
    for name, value in sorted(now.items()):
        if elsewhere and name in adapters_flags():
            continue  # another backend has other flags
        if name == FILE_CONTENTS:
            continue  # compared with the settings that name the files
        if name in _TAKEN_OVER and value == _TAKEN_OVER[name]:
            continue
        before = saved.get(name, defaults.get(name, value))
        matters = MATTERS.get(name)
        if matters is not None and not (matters(saved) and matters(now)):
            continue
        if name == "data_seed":
            if before is None and value is None:
                continue  # it follows --seed, which is compared
            before = saved.get("seed") if before is None else before
            value = now.get("seed") if value is None else value
        if name in file_settings() and (contents := _contents(name, saved, now)) is not None:
            if contents[0] == contents[1]:
                if not _same(before, value):
                    found.append(Change(name=name, saved=before, now=value, kind=Kind.FREE, why=SAME_CONTENT))
                continue
            before, value = (
                f"{path} (SHA-256 {mark[:12]})" for path, mark in zip((before, value), contents, strict=True)
            )
        if not _same(before, value):
            kind, why = _judge(name, before, value, saved, now)
            found.append(Change(name=name, saved=before, now=value, kind=kind, why=why))
    return found


def _contents(name: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return what the file that a setting names said then and says now; None where that is not known of both."""
    pair = tuple((settings.get(FILE_CONTENTS) or {}).get(name) for settings in (saved, now))
    return None if None in pair else (str(pair[0]), str(pair[1]))


def _judge(name: str, before: Any, value: Any, saved: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Kind, str]:
    """Return the kind of one change, and why it cannot be allowed where that is not the setting's own kind."""
    engine = now.get("deepspeed")
    if name in SPLIT and (saved.get("static_shapes") or now.get("static_shapes")):
        return Kind.CHANGES_RESULT, ""  # a step's rows are of one shape, and the split decides which
    if name == WORLD_SIZE and engine is not None:
        return Kind.NEVER, "DeepSpeed's checkpoint has one part of the optimizer for each process"
    if name in _OF_THE_ENGINE and engine is not None:
        return Kind.NEVER, "DeepSpeed's checkpoint holds the optimizer in the form that goes with it"
    if name == "optim" and {before, value} == _SAME_STATE:
        return Kind.CHANGES_RESULT, ""
    if name in PART_RATES and None in (before, value):
        return Kind.NEVER, "the optimizer would have other groups of weights"
    timed = name in _OF_THE_SCHEDULE or name in PART_RATES
    if timed and _BY_LOSS & {saved.get("lr_scheduler_type"), now.get("lr_scheduler_type")}:
        return Kind.NEVER, "this schedule's present rate comes from the losses so far"
    if isinstance(engine, Mapping):
        if "optimizer" in engine and (timed or name in _OF_THE_OPTIMIZER):
            return Kind.NEVER, "the DeepSpeed configuration brings an optimizer of its own, which keeps its numbers"
        if "scheduler" in engine and timed:
            return Kind.NEVER, "the DeepSpeed configuration brings a schedule of its own, which keeps its numbers"
    return kind_of(name), ""


def _refusal(checkpoint: Path, refused: Sequence[Change], allowed: frozenset[str]) -> str:
    never = [change for change in refused if change.kind is Kind.NEVER]
    free = sorted({change.name for change in refused if change.kind is not Kind.NEVER})
    lines = []
    for change in refused:
        mark = f" (cannot be allowed{': ' if change.why else ''}{change.why})" if change.kind is Kind.NEVER else ""
        lines += [f"  {line}{mark}" for line in change.lines()]
    stands_on = STANDS_ON.intersection(change.name for change in refused)
    what = "this differs from its run" if stands_on else "settings differ from those of its run"
    text = f"--resume_from_checkpoint {checkpoint}: {what}:\n" + "\n".join(lines)
    if len(stands_on) < len({change.name for change in refused}):
        text += "\nGive the checkpoint's settings."
    if stands_on - {VERSIONS}:
        text += f"\n{AGAIN}"
    if VERSIONS in stands_on:
        text += "\nInstall the checkpoint's versions."
    if free:
        which = "those that are not marked" if never else "the new ones"
        text += f" To go on with {which}, add: --allow_changed {' '.join(sorted({*free, *allowed}))}"
    return f"{text}\n{NEW_RUN}" if never else text


def _say(heading: str, changes: Sequence[Change], level: int) -> None:
    if changes:
        lines = [f"{line}{f' ({change.why})' if change.why else ''}" for change in changes for line in change.lines()]
        logger.log(level, "%s: %s.", heading, "; ".join(lines))


def _same(first: Any, second: Any) -> bool:
    """Compare as JSON holds them, but true is not 1."""
    return bool(first == second) and isinstance(first, bool) == isinstance(second, bool)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
