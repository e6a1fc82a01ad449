"""The text of `vlm-lora VERB --help`: every setting with its docstring, default and other names.

The help of a field is the docstring under it in `config.py`, read from the source, so it is written once.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields
from functools import cache
from typing import Any, get_type_hints

from vlm_lora.config import run_config as config
from vlm_lora.config.aliases import CONFIG_VARIABLES, describe_aliases
from vlm_lora.config.fields import SECTIONS, OwnField, own_fields
from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.values import expected, spell

WIDTH = 100

INTRODUCTION = (
    "Every flag is also a key of a YAML or JSON file: --config FILE, or one file as the first word, or "
    f"{CONFIG_VARIABLES[0]} in the environment; flags win. Dashes and underscores are the same. Switches "
    "take true or false, or nothing (true), or a leading --no_ (false). Several values follow one flag; "
    "a mapping is written as JSON."
)

COMMON_KEYS = (
    "output_dir",
    "do_train",
    "do_eval",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "bf16",
    "gradient_checkpointing",
    "logging_steps",
    "eval_strategy",
    "eval_steps",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "report_to",
    "seed",
    "dataloader_num_workers",
    "deepspeed",
    "fsdp",
    "resume_from_checkpoint",
)
"""The backend's keys that most runs set."""


def help_text(
    verb: str = "train",
    *,
    everything: bool = False,
    arguments_class: type | None = None,
    own: Mapping[str, str] | None = None,
) -> str:
    """Return the help of a verb.

    Args:
        verb: the word after `vlm-lora`.
        everything: also list every key of the backend's arguments class (`--help_all`).
        arguments_class: that class; transformers' own when not given. Only used with `everything`.
        own: the flags that the verb has in addition to the run's, each with what it is for.
    """
    parts = [
        f"vlm-lora {verb} [--config FILE] [--key value ...]",
        _wrapped(INTRODUCTION, ""),
    ]
    if own:
        width = max(map(len, own)) + 2
        lines = [f"  {flag:<{width}}{meaning}" for flag, meaning in own.items()]
        parts.append("\n".join([f"Of {verb} alone (no keys of a configuration file)", *lines]))
    for section, owner in (*SECTIONS.items(), ("", RunConfig)):
        settings = [field for field in own_fields().values() if field.section == section]
        parts.append("\n".join([_heading(owner, section), *(_own_entry(setting) for setting in settings)]))
    names = " ".join(f"--{key}" for key in COMMON_KEYS)
    parts.append(
        "The backend's keys\n"
        + _wrapped(f"The most used: {names}. vlm-lora {verb} --help_all lists and explains all of them.", "  ")
    )
    if everything:
        parts.append(_backend_help(arguments_class))
    parts.append(_alias_help())
    return "\n\n".join(parts)


@cache
def field_docs() -> Mapping[tuple[str, str], str]:
    """Return the docstring under each field of `config.py` by (class name, field name)."""
    found: dict[tuple[str, str], str] = {}
    for node in ast.parse(inspect.getsource(config)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, text in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                found[node.name, field.target.id] = " ".join(str(text.value.value).split())
    return found


def _heading(owner: type, section: str) -> str:
    if not section:
        return "The run"
    return (inspect.getdoc(owner) or owner.__name__).splitlines()[0].rstrip(".")


def _own_entry(setting: OwnField) -> str:
    owner = SECTIONS[setting.section] if setting.section else RunConfig
    text = field_docs()[owner.__name__, setting.name]
    return _entry(setting.name, setting.hint, setting.default, text)


def _entry(name: str, hint: Any, default: Any, text: str) -> str:
    kind = expected(hint).split(" (")[0].replace(", or its JSON text", "")
    shown = "none" if default is None or default == {} else spell(default)
    return f"  --{name} ({kind}; default {shown})\n{_wrapped(text, '      ')}"


def _backend_help(arguments_class: type | None) -> str:
    if arguments_class is None:
        from transformers import TrainingArguments

        arguments_class = TrainingArguments
    hints = get_type_hints(arguments_class)
    entries = [
        _entry(
            field.name,
            hints[field.name],
            _default(field),
            " ".join(str(field.metadata.get("help", "")).split()),
        )
        for field in fields(arguments_class)
        if field.init and field.name not in own_fields()
    ]
    return "\n".join([f"All keys of {arguments_class.__name__}", *entries])


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default


def _alias_help() -> str:
    rows = describe_aliases()
    width = max(len(alias) for alias, _, _ in rows) + 2
    lines: Iterable[str] = (
        textwrap.fill(
            f"--{alias:<{width}}{meaning} [{users}]",
            width=WIDTH,
            initial_indent="  ",
            subsequent_indent=" " * (width + 4),
            break_on_hyphens=False,
        )
        for alias, meaning, users in rows
    )
    return "\n".join(["Names of other tools that are understood", *lines])


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(
        text,
        width=WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
