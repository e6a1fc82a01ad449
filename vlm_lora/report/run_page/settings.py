"""What a run was asked for and on what it ran, as lines of its page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from vlm_lora.config.argument_fields import arguments_like
from vlm_lora.config.fields import own_fields
from vlm_lora.report.pages.rendering import as_text, size
from vlm_lora.report.run_page.folder import RunFolder, is_figure
from vlm_lora.training.arguments import DEFAULT_ARGUMENTS, LORA_ARGUMENTS

LONGEST = 600
"""Characters of one value."""
PLAIN = ("command", "directory", "started", "ranks")
TOLD = ("git", "versions", "hardware", "seeds", "environment")
"""Parts of `run.json` that are names with one value each."""
NOT_CHANGES = ("do_train", "do_eval", "output_dir")
"""Settings that every run has and that change nothing of what it learns."""


def changed_settings(settings: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the settings that differ from their defaults: name, value, default."""
    lora = settings.get("peft_method", "lora") == "lora"
    found = []
    for name, value in settings.items():
        default = as_text(_default(name, lora=lora))
        if name not in NOT_CHANGES and as_text(value) != default:
            found.append((name, as_text(value), default))
    return found


def _default(name: str, *, lora: bool) -> Any:
    own = own_fields().get(name)
    value = own.default if own is not None else {**_of_the_trainer(), **(LORA_ARGUMENTS if lora else {})}.get(name)
    value = getattr(value, "value", value)
    return list(value) if isinstance(value, tuple) else value


@cache
def _of_the_trainer() -> Mapping[str, Any]:
    known = arguments_like("auto")
    declared = {field.name: field.metadata["default"] for field in fields(known)} if known is not None else {}
    return {**declared, **DEFAULT_ARGUMENTS}


def machine(run: RunFolder) -> list[tuple[str, str]]:
    """Return what `run.json` says besides settings, one line each: command, code, versions, hardware, model, data."""
    told = run.identity
    lines = [(name, _short(as_text(told[name]))) for name in PLAIN if told.get(name) is not None]
    for name in TOLD:
        part = told.get(name)
        if isinstance(part, Mapping) and part:
            lines.append((name, _short(", ".join(f"{key} {_value(key, value)}" for key, value in part.items()))))
    for name in ("base_model", "adapter"):
        part = told.get(name)
        if isinstance(part, Mapping):
            shown = {key: part[key] for key in ("name", "revision", "sha256") if part.get(key)}
            lines.append((name.replace("_", " "), _short(", ".join(f"{key} {value}" for key, value in shown.items()))))
    data = told.get("data")
    for split, part in data.items() if isinstance(data, Mapping) else ():
        if isinstance(part, Mapping):
            shown = {key: part[key] for key in ("source", "rows", "hash") if part.get(key) is not None}
            lines.append((f"data: {split}", _short(", ".join(f"{key} {value}" for key, value in shown.items()))))
    before = told.get("continues")
    if isinstance(before, Mapping):
        lines.append(("continues", _short(as_text(before.get("checkpoint")))))
    return lines


def _value(key: str, value: Any) -> str:
    return size(value) if key.endswith("memory") and is_figure(value) else as_text(value)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
