"""The text of `vlm-lora VERB --help`: what the verb uses, the settings that people change first.

The help of one of our settings is the docstring under it in `run_config.py` or beside it, that of the trainer's the
one in its class, both read from the source, so each is written once.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from vlm_lora.config import reporting, run_config, scoring
from vlm_lora.config.aliases import CONFIG_VARIABLES, describe_aliases
from vlm_lora.config.argument_fields import arguments_like
from vlm_lora.config.fields import SECTIONS, OwnField, own_fields
from vlm_lora.config.resolution import OWN_HINTS
from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.sections import tuning
from vlm_lora.config.values import expected, spell
from vlm_lora.training.arguments import DEFAULT_ARGUMENTS, LORA_ARGUMENTS

WIDTH = 100

INTRODUCTION = (
    "Every flag is also a key of a YAML or JSON file: --config FILE, or one file as the first word, or "
    f"{CONFIG_VARIABLES[0]} in the environment; flags win. Dashes and underscores are the same. Switches "
    "take true or false, or nothing (true), or a leading --no_ (false). Several values follow one flag; "
    "a mapping is written as JSON."
)

PURPOSES: Mapping[str, str] = {
    "train": "train on your data, then evaluate: --model_name_or_path MODEL --dataset_name DATA --output_dir DIR",
    "eval": "perplexity (and answers) on held-out rows: --model_name_or_path MODEL_OR_ADAPTER --dataset_name DATA",
    "ask": 'one question about images: --model_name_or_path MODEL_OR_ADAPTER --image FILE --prompt "QUESTION"',
    "check": "read every row before training: --model_name_or_path MODEL --dataset_name DATA",
    "preview": "rows as the model will see them: --model_name_or_path MODEL --dataset_name DATA",
    "merge": "an adapter and its base as one whole model, proven: ADAPTER --output_dir DIR [--rows N]",
    "quantize": "a run or a whole model in fewer bits, proven: FOLDER --scheme awq|fp8-dynamic --output_dir DIR",
    "servable": "which servers load a folder as it is, and what to type: FOLDER",
    "push": "a model to the Hub, in one commit, with token, name and reach tried first: FOLDER REPO",
    "register": "a model into MLflow's registry, with settings, figures, data report and page: FOLDER NAME",
    "cache": "images and features ahead of a run: --model_name_or_path MODEL --dataset_name DATA; --list; --clear NAME",
    "plan": "predict memory and time of a training run: --model_name_or_path MODEL [--dataset_name DATA]",
    "report": "one run on one page, report.html: RUN [--output FILE]",
    "runs": "the runs below a folder: state, step, loss, score, best checkpoint: DIR",
    "compare": "several runs side by side, with paired tests of their scores: RUN RUN [...] [--output FILE]",
    "demo": "train a tiny model on drawn charts, on a CPU, without a download",
    "doctor": "what this machine has, what would be used, and what is missing",
}
"""What each verb does, and its shortest line."""

FIRST = (
    "model_name_or_path",
    "dataset_name",
    "output_dir",
    "validation_fraction",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lora_rank",
    "lora_targets",
    "peft_method",
    "max_length",
    "on_overflow",
    "gradient_checkpointing",
    "load_in_4bit",
    "eval_strategy",
    "save_steps",
    "seed",
    "resume_from_checkpoint",
)
"""The twenty settings that people change, in the order in which they do."""

_READING = ("data", "model", "batching")
USES: Mapping[str, tuple[str, ...]] = {
    "train": (*SECTIONS, "", "trainer"),
    "cache": (*SECTIONS, "", "trainer"),
    "plan": (*SECTIONS, "", "trainer"),
    "eval": (*_READING, "generation", "scoring", "reporting", "", "trainer"),
    "ask": ("model", "generation", ""),
    "merge": (*_READING, "generation", ""),
    "quantize": (*_READING, "generation", ""),
    "check": (*_READING, "reporting", ""),
    "preview": (*_READING, "reporting", ""),
    "servable": (),
    "push": (),
    "register": (),
    "report": (),
    "runs": (),
    "compare": (),
    "demo": (),
    "doctor": (),
}
"""The sections of settings that each verb reads; the empty name is the run's own, `trainer` the arguments class."""

SINGLE: Mapping[str, tuple[str, ...]] = {
    "ask": ("system_prompt", "box_coordinates", "allow_urls", "max_image_pixels", "max_image_bytes", "max_length"),
}
"""Settings of other sections that a verb reads."""

SAID: Mapping[str, str] = {
    "output_dir": "Folder that adapter, checkpoints and results go to.",
    "num_train_epochs": "How often the training rows are gone through.",
    "max_steps": "End after so many optimizer steps, whatever --num_train_epochs says; -1 for no such end.",
    "per_device_train_batch_size": "Rows of one step on each device.",
    "gradient_accumulation_steps": "Batches whose gradients are summed before a step.",
    "learning_rate": "Size of the steps at their largest.",
    "gradient_checkpointing": "Compute the language model's activations again instead of keeping them.",
    "eval_strategy": "When to evaluate during training: no, steps or epoch.",
    "save_steps": "Save a checkpoint every so many steps (below 1: share of all steps).",
    "seed": "Of everything that is drawn: LoRA's start, the order of rows.",
    "resume_from_checkpoint": "Go on from a checkpoint: its folder, or auto for the newest whole one.",
}
"""The trainer's keys among the first, in a line each."""

OTHERWISE: Mapping[str, tuple[str | None, str]] = {
    "train_sampling_strategy": (
        None,
        "In which order training rows come: random, sequential, or group_by_length (rows of like length share a "
        "batch). By default group_by_length where that saves a tenth of the tokens, else random.",
    ),
    "length_column_name": ("length", "Without effect: how long a row is, is known from the row itself."),
}
"""Default and meaning of the trainer's keys that mean something else here than its own help says."""


def help_text(verb: str = "train", *, everything: bool = False, own: Mapping[str, str] | None = None) -> str:
    """Return the help of a verb.

    Args:
        verb: the word after `vlm-lora`.
        everything: every setting that the verb reads, explained, and all other tools' names (`--help_all`).
        own: the flags that the verb has in addition to the run's, each with what it is for.
    """
    parts = [f"vlm-lora {verb}: {PURPOSES[verb]}"]
    if own:
        width = max(map(len, own)) + 2
        lines = [f"  {flag:<{width}}{meaning}" for flag, meaning in own.items()]
        parts.append("\n".join([f"Of {verb} alone (no keys of a configuration file)", *lines]))
    used = USES[verb]
    if not used:
        return "\n\n".join(parts)
    first = [name for name in FIRST if _section_of(name) in used]
    parts.append("\n".join(["Changed most", *(_short(name) for name in first)]))
    if not everything:
        others = [*_others(used, set(first)), *_singles(verb, everything=False)]
        parts.append("\n".join(["Other settings (explained by --help_all)", *others]))
    parts.append(_wrapped(INTRODUCTION, ""))
    if everything:
        parts += [*(_section(section) for section in used), *_singles(verb, everything=True)]
        parts.append(_alias_help())
    return "\n\n".join(parts)


@cache
def field_docs() -> Mapping[tuple[str, str], str]:
    """Return the docstring under each field of our settings by (class name, field name)."""
    found: dict[tuple[str, str], str] = {}
    sources = [inspect.getsource(module) for module in (run_config, tuning, scoring, reporting)]
    for node in [node for source in sources for node in ast.parse(source).body]:
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


@cache
def trainer_fields() -> Mapping[str, tuple[Any, Any, str]]:
    """Return type, default and help of each key of the arguments class that is not ours, by name."""
    known = arguments_like("auto")
    found: dict[str, tuple[Any, Any, str]] = {}
    for field in fields(known) if known is not None else ():
        if field.name in OTHERWISE:
            found[field.name] = (OWN_HINTS.get(field.name, field.type), *OTHERWISE[field.name])
        elif field.name not in own_fields():
            default = DEFAULT_ARGUMENTS.get(field.name, field.metadata["default"])
            found[field.name] = field.type, default, " ".join(field.metadata["help"].split())
    return found


def _section_of(name: str) -> str:
    setting = own_fields().get(name)
    return "trainer" if setting is None else setting.section


def _short(name: str) -> str:
    """Return one setting as its flag, its first sentence, and its default."""
    setting = own_fields().get(name)
    if setting is not None:
        text, default = _doc(setting).split(". ")[0].split("; ")[0].rstrip("."), setting.default
    else:
        text, default = SAID[name].rstrip("."), trainer_fields()[name][1]
    shown = "" if default is None or default in ("", {}) else f" ({spell(default)})"
    if name in LORA_ARGUMENTS:
        shown = f" ({spell(LORA_ARGUMENTS[name])} with LoRA, else {spell(default)})"
    column = max(map(len, FIRST)) + 6
    return textwrap.fill(
        f"  --{name}".ljust(column) + text + shown,
        width=WIDTH,
        subsequent_indent=" " * column,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _others(used: Iterable[str], first: set[str]) -> list[str]:
    """Return the names of the other settings, by section."""
    lines = []
    for section in used:
        names = _names(section)
        rest = " ".join(f"--{name}" for name in names if name not in first)
        lines.append(_wrapped(f"{_heading(section)}: {rest}", "  ", hanging=4))
    return lines


def _singles(verb: str, *, everything: bool) -> list[str]:
    """Return the settings of other sections that a verb reads."""
    settings = [own_fields()[name] for name in SINGLE.get(verb, ())]
    if not settings:
        return []
    if everything:
        entries = [_entry(field.name, field.hint, field.default, _doc(field)) for field in settings]
        return ["\n".join(["Of images and rows", *entries])]
    return [_wrapped("Of images and rows: " + " ".join(f"--{field.name}" for field in settings), "  ", hanging=4)]


def _names(section: str) -> list[str]:
    if section == "trainer":
        return list(trainer_fields())
    return [field.name for field in own_fields().values() if field.section == section]


def _heading(section: str) -> str:
    if section == "trainer":
        return "The trainer"
    if not section:
        return "The run"
    owner = SECTIONS[section]
    return (inspect.getdoc(owner) or owner.__name__).splitlines()[0].rstrip(".")


def _section(section: str) -> str:
    if section == "trainer":
        entries = [_entry(name, *found) for name, found in trainer_fields().items()]
    else:
        own = [field for field in own_fields().values() if field.section == section]
        entries = [_entry(field.name, field.hint, field.default, _doc(field)) for field in own]
    return "\n".join([_heading(section), *entries])


def _doc(setting: OwnField) -> str:
    owner = SECTIONS[setting.section] if setting.section else RunConfig
    return field_docs()[owner.__name__, setting.name]


def _entry(name: str, hint: Any, default: Any, text: str) -> str:
    kind = expected(hint).split(" (")[0].replace(", or its JSON text", "")
    shown = "none" if default is None or default == {} else spell(default)
    return f"  --{name} ({kind}; default {shown})\n{_wrapped(text, '      ')}"


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


def _wrapped(text: str, indent: str, *, hanging: int = 0) -> str:
    return textwrap.fill(
        text,
        width=WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + " " * hanging,
        break_on_hyphens=False,
        break_long_words=False,
    )
