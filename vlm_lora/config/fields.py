"""The flat view of RunConfig: every field of every section under its one name.

Flags and configuration files are flat; RunConfig is not. Only this module knows which name lives where.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from typing import Any, get_type_hints

from vlm_lora.config.reporting import GuardConfig, ReportConfig
from vlm_lora.config.run_config import (
    BatchingConfig,
    DataConfig,
    DryRunConfig,
    GenerationConfig,
    ModelConfig,
    RunConfig,
    TuningConfig,
)
from vlm_lora.config.scoring import ScoringConfig, with_implied_answers
from vlm_lora.config.values import convert
from vlm_lora.errors import ConfigError, Refusals

_FLAG = re.compile(r"--(\w+)")

SECTIONS: Mapping[str, type] = {
    "data": DataConfig,
    "model": ModelConfig,
    "tuning": TuningConfig,
    "batching": BatchingConfig,
    "generation": GenerationConfig,
    "scoring": ScoringConfig,
    "dry_run_options": DryRunConfig,
    "reporting": ReportConfig,
    "guards": GuardConfig,
}


@dataclass(frozen=True, kw_only=True)
class OwnField:
    """One setting of ours."""

    name: str
    section: str
    """Attribute of RunConfig that holds it; empty for RunConfig's own."""
    hint: Any
    default: Any
    join: str
    """What several values are joined with, where the field is text; empty where they are not."""

    def typed(self, value: Any) -> Any:
        """Return `value` in this field's type. Raises `config_values.MismatchError`."""
        if self.join and isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            value = self.join.join(value)
        return convert(value, self.hint)


@cache
def own_fields() -> Mapping[str, OwnField]:
    """Return our settings by name, in the order of the dataclasses."""
    found: dict[str, OwnField] = {}
    for section, owner in (*SECTIONS.items(), ("", RunConfig)):
        hints = get_type_hints(owner)
        for field in fields(owner):
            if owner is RunConfig and (field.name in SECTIONS or field.name in ("raw", "given")):
                continue
            found[field.name] = OwnField(
                name=field.name,
                section=section,
                hint=hints[field.name],
                default=_default(field),
                join=str(field.metadata.get("join", "")),
            )
    return found


def assemble(values: Mapping[str, Any], raw: Mapping[str, Any], refused: Refusals) -> RunConfig:
    """Build a RunConfig from typed values under flat names, and the backend's keys.

    A value that is out of range, and what contradicts another, is noted in `refused`, and left out.
    """
    owned: dict[str, dict[str, Any]] = {section: {} for section in (*SECTIONS, "")}
    implied = values
    with refused.noting():
        implied = with_implied_answers(values, raw)
    for name, value in implied.items():
        owned[own_fields()[name].section][name] = value
    sections = {section: _built(owner, owned[section], refused) for section, owner in SECTIONS.items()}
    return RunConfig(**sections, **owned[""], raw=dict(raw), given=frozenset(values))


def _built(owner: type, values: Mapping[str, Any], refused: Refusals) -> Any:
    """Build a section; each message begins with the flag that it refuses, without which the rest is tried again."""
    left = dict(values)
    while True:
        try:
            return owner(**left)
        except ConfigError as error:
            flag = _FLAG.match(str(error))
            name = flag[1] if flag and flag[1] in left else None
            refused.note(error, *([name] if name else left))
            if name is None:
                return owner()
            del left[name]


def flatten(run: RunConfig) -> dict[str, Any]:
    """Return every setting of ours under its flat name, defaults included."""
    return {
        field.name: getattr(getattr(run, field.section) if field.section else run, field.name)
        for field in own_fields().values()
    }


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default
