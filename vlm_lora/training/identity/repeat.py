"""What is otherwise in a run that repeats another one (`--from_run`): said, one line each, and never refused.

A repeat is a new run in a folder of its own, so nothing is lost by letting it differ, and often that is the point of it
(a newer version, another machine, one setting). What cannot be the same is named, so that nobody takes it for the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from vlm_lora.training.checkpoints.changed_settings import differences, surrounding_changes, with_places_settled
from vlm_lora.training.checkpoints.run_settings import default_settings
from vlm_lora.training.checkpoints.setting_kinds import SPLIT, WORLD_SIZE, Kind
from vlm_lora.training.identity.opening import Opened
from vlm_lora.training.identity.record import RunIdentity, read_identity
from vlm_lora.training.identity.rows import compare_rows

logger = logging.getLogger(__name__)

THEN = "then"
_OF_THE_MACHINE = ("backend", "device", "cpu", "system")


def say_repeated(opened: Opened, now: RunIdentity) -> None:
    """Say how a run differs from the one that it repeats; it is called on rank 0.

    Args:
        opened: the run.
        now: its record.
    """
    record = Path(str(opened.run.from_run))
    before = read_identity(record.parent)
    if before is None:
        return
    lines = list(differing(before, now, opened))
    for line in lines:
        logger.warning("Differs from %s: %s.", record.parent, line)
    if not lines:  # said at the same level, so that silence is not taken for it
        logger.warning(
            "Repeats %s: settings, versions, code, rows, base model and machine are the same.", record.parent
        )


def differing(before: RunIdentity, now: RunIdentity, opened: Opened) -> Iterator[str]:
    """Yield what differs between a run and the one that it repeats, in words."""
    changes = differences(before.settings, now.settings, defaults=default_settings(type(opened.arguments)))
    changes = with_places_settled(changes, before, now)
    moved = any(change.waits_for_rows for change in changes)
    other_rows = []
    if before.data and now.data:
        other_rows = compare_rows(before.data, now.data, opened.source, then=THEN, moved=moved)
    for change in changes:
        if change.waits_for_rows and other_rows:
            yield from change.lines(THEN)
        if (change.kind is not Kind.FREE or change.name in SPLIT) and change.name != WORLD_SIZE:
            yield from change.lines(THEN)
    if before.ranks != now.ranks:
        yield f"{before.ranks} ranks {THEN}, {now.ranks} now"
    for change in surrounding_changes(before, now):
        yield from change.lines(THEN)
    yield from _code(before.git, now.git)
    for rows in other_rows:
        yield f"rows: {rows.text}"
    for kind, old, new in (
        ("", {name: before.hardware.get(name) for name in _OF_THE_MACHINE}, now.hardware),
        ("environment variable ", before.environment, now.environment),
    ):
        for name in sorted({*old, *(new if kind else ())}):
            if old.get(name) != new.get(name):
                yield f"{kind}{name} {_word(old.get(name))} {THEN}, {_word(new.get(name))} now"
    changed = (before.continues or {}).get("changed")
    if changed:
        yield f"it went on from a checkpoint with changes, and a repeat begins at the start: {'; '.join(changed)}"


def _code(before: Mapping[str, object] | None, now: Mapping[str, object] | None) -> Iterator[str]:
    old, new = before or {}, now or {}
    if old.get("commit") != new.get("commit"):
        yield f"git commit {_word(old.get('commit'))} {THEN}, {_word(new.get('commit'))} now"
    elif old.get("changes") != new.get("changes"):
        yield "git: other changes that are in no commit"


def _word(value: object) -> str:
    return "not set" if value is None else str(value)
