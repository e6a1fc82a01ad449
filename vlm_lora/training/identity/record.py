"""The record of a run, `run.json`: in the output folder from its start, and in each of its checkpoints.

A run that goes on from a checkpoint is compared with it, and `--from_run` repeats what it says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from vlm_lora.config.repeated import FILE, FORMAT
from vlm_lora.config.whole_files import write_json
from vlm_lora.errors import ConfigError

ALONE = "eval_run.json"
"""The same of a run that measures alone, which may write into the folder of a training."""
EARLIER = "run_settings.json"
"""What checkpoints of earlier versions keep: settings and versions alone."""


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """All that makes a run what it is. Secrets are left out; what was not known is None or empty."""

    settings: Mapping[str, Any]
    """The effective settings, defaults included (`run_settings.effective_settings`)."""
    versions: Mapping[str, str]
    config: Mapping[str, Any] = field(default_factory=dict)
    """What `--config` would read: our settings, and those of the trainer's that were given."""
    command: str | None = None
    directory: str | None = None
    """Where it was started: relative paths begin there."""
    git: Mapping[str, Any] | None = None
    """As `surroundings.git_state` returns it, of that folder."""
    data: Mapping[str, Any] | None = None
    """As `rows.describe_rows` returns it."""
    base_model: Mapping[str, Any] | None = None
    """As `base_model.describe_base` returns it."""
    adapter: Mapping[str, Any] | None = None
    """The same of the adapter that the run begins with; None for a new one."""
    ranks: int | None = None
    seeds: Mapping[str, int | None] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    started: str | None = None
    """When, in UTC as ISO 8601 has it."""
    repeats: str | None = None
    """The record that `--from_run` named."""
    continues: Mapping[str, Any] | None = None
    """Of a run that went on from a checkpoint: `checkpoint`, `started` (of the run that saved it), `changed` (in words)
    and `continues` (what that run went on from)."""

    @property
    def is_whole(self) -> bool:
        """Whether it says more than settings and versions, as earlier versions' records do not."""
        return self.base_model is not None


def write_identity(folder: Path, identity: RunIdentity, *, name: str = FILE) -> None:
    """Write a record into an output folder or checkpoint, whole or not at all."""
    write_json(folder / name, {"format": FORMAT, **asdict(identity)})


def read_identity(folder: Path) -> RunIdentity | None:
    """Return the record in an output folder or checkpoint; None where there is none.

    Raises:
        ConfigError: it is there and cannot be read.
    """
    path = next((folder / name for name in (FILE, EARLIER) if (folder / name).exists()), None)
    if path is None:
        return None
    known = {each.name for each in fields(RunIdentity)}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        made_by = dict(content["versions"])
        identity = RunIdentity(
            **{name: value for name, value in content.items() if name in known},
        )
        dict(identity.settings)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}), so nobody knows with what settings the checkpoint was made. Name "
            "another checkpoint, or remove the file to go on without comparing them."
        ) from error
    if content.get("format") != FORMAT:
        raise ConfigError(
            f"{path}: has the format {content.get('format')} and this version reads {FORMAT}. Go on with the version "
            f"of vlm-lora that wrote it ({made_by.get('vlm_lora')})."
        )
    return identity
