"""The backend's keys: checked and typed against its arguments class, and the record of a resolved run.

Which names a class has decides how a key is passed on, so one configuration works with transformers 4.55,
5.x and optimum-habana. What each name becomes is data in `aliases`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_type_hints

from vlm_lora.config.aliases import (
    DROPPED,
    LAUNCHER_KEYS,
    RESTATED,
    SECRETS,
    SETTLED,
    aliases,
    canonical_name,
    shown,
)
from vlm_lora.config.declaration import asking_for, declarations
from vlm_lora.config.fields import flatten, own_fields
from vlm_lora.config.files import write_mapping
from vlm_lora.config.other_tools import FAMILIES
from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.values import NONE_WORDS, MismatchError, convert, spell
from vlm_lora.config.version import __version__
from vlm_lora.errors import ConfigError, Refusals, nearest

OWN_HINTS: Mapping[str, Any] = {
    # `true` resumes from the newest checkpoint.
    "resume_from_checkpoint": Literal[True, False] | str | None,
    # Batches are made by the project; its groups give the processes of a step rows of like length as well.
    "train_sampling_strategy": Literal["random", "sequential", "group_by_length"],
}
"""Fields that take other values here than their class declares."""

ZERO_MEANS_NONE = frozenset({"dataloader_prefetch_factor"})
"""Fields of which 0 says that there is none of it, as users of other tools type it; torch takes 1 or more, or None."""

SECRET_VARIABLE = re.compile("TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
"""In the names of environment variables."""

SLIP = 0.8
"""How alike an unknown key must be to a known one to be a slip of it: `use_peft` is none of `use_ipex` (0.75)."""


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """What an arguments class declares."""

    fields: Mapping[str, Field[Any]]
    hints: Mapping[str, Any]

    def typed(self, name: str, value: Any, written: str) -> Any:
        """Return `value` as field `name` wants it; `written` is the key the user set."""
        own = OWN_HINTS.get(name)
        choices = None if own else self.fields[name].metadata.get("choices")
        typed = _typed(written, value, own or self.hints[name], choices)
        return None if name in ZERO_MEANS_NONE and typed == 0 else typed


@dataclass(kw_only=True)
class _Draft:
    """The keys of the class, as far as they are settled."""

    shape: _Shape
    values: dict[str, Any]
    written: dict[str, str]
    """The key the user set, by the class's name for it."""
    environment: dict[str, str]

    def put(self, name: str, value: Any, written: str) -> None:
        """Settle a key. Raises ConfigError where another key settled it differently."""
        typed = self.shape.typed(name, value, written)
        if name in self.values and self.values[name] != typed:
            raise ConfigError(
                f"--{self.written[name]} {shown(name, self.values[name])} and "
                f"--{written} {shown(name, value)} contradict each other. Leave one of them out."
            )
        self.values[name] = typed
        self.written[name] = written


def resolve(run: RunConfig, arguments_class: type, refused: Refusals | None = None) -> tuple[RunConfig, dict[str, Any]]:
    """Check and type the keys of `run.raw` against the fields of a backend's arguments class.

    Args:
        run: what was parsed.
        arguments_class: a dataclass such as `transformers.TrainingArguments`.
        refused: gathers what cannot be used, and the rest comes back; None raises it.

    Returns:
        The run, its `raw` typed and under canonical names and its `environment` completed (set it before the
        backend is prepared); and the keyword arguments for the class, holding only what was given.

    Raises:
        ConfigError: unknown keys (all of them, with the nearest names), wrong values, contradictions.
    """
    shape = _Shape(
        fields={field.name: field for field in fields(arguments_class) if field.init},
        hints=get_type_hints(arguments_class),
    )
    draft = _Draft(shape=shape, values={}, written={}, environment=dict(run.environment))
    gathered = refused or Refusals()
    known = _known_names(shape)
    restated: list[str] = []
    for key, value in run.raw.items():
        with gathered.noting(key, canonical_name(key)):
            if key in shape.fields or not (key in DROPPED or key in RESTATED):
                place = _place(key, value, shape)
                if place is None:
                    raise ConfigError(_explain(key, run, known))
                draft.put(*place, key)
            elif key in DROPPED:
                _check_dropped(key, value, run)
            else:
                restated.append(key)
    for key in restated:
        with gathered.noting(key, RESTATED[key].setting):
            _RESTATE[key](draft, key, run.raw[key])
    if refused is None:
        gathered.raise_any()
    raw = {canonical_name(name): _canonical_value(name, value) for name, value in draft.values.items()}
    return replace(run, raw=raw, environment=draft.environment), draft.values


def to_mapping(run: RunConfig, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resolved run as one flat mapping that `--config` reads back; secrets are left out.

    Our own settings come with their defaults; of the backend's, those in `arguments`.
    """
    content: dict[str, Any] = {}
    for name, value in flatten(run).items():
        if name == "environment":
            value = {key: text for key, text in value.items() if not SECRET_VARIABLE.search(key)}
        # What it named stands among the others by now.
        if value is not None and value != {} and name not in SECRETS and name != "from_run":
            content[name] = _plain(value)
    content |= {name: _plain(value) for name, value in arguments.items() if canonical_name(name) not in SECRETS}
    return content


def write_resolved(path: Path, run: RunConfig, values: Mapping[str, Any]) -> None:
    """Write `to_mapping(run, values)` as YAML; `vlm-lora train --config PATH` repeats the run."""
    heading = f"vlm-lora {__version__}: our settings, and the backend's that were given. Secrets are left out."
    write_mapping(path, to_mapping(run, values), heading=heading)


def _place(key: str, value: Any, shape: _Shape) -> tuple[str, Any] | None:
    """Return the class's name and value for a key, or None where it has none."""
    older = [alias for alias in aliases().values() if alias.canonical == key and alias.name in shape.fields]
    for alias in older:
        if alias.preferred:
            return alias.name, value
    if key in shape.fields:
        # 4.55 counts warm-up in whole steps and keeps the share of all steps in a field of its own.
        if key == "warmup_steps" and "warmup_ratio" in shape.fields and 0 < _typed(key, value, float) < 1:
            return "warmup_ratio", value
        return key, value
    if key in aliases() and aliases()[key].canonical in shape.fields:
        try:
            meaning = aliases()[key].translate(value)
        except MismatchError as error:
            raise ConfigError(f"--{key} {shown(key, value)}: must be {error}.") from error
        return aliases()[key].canonical, meaning
    for alias in older:
        try:
            return alias.name, alias.restore(value)
        except LookupError as error:
            raise ConfigError(
                f"--{key} {shown(key, value)}: this backend's transformers offers --{alias.name} and no more."
            ) from error
    return None


def _canonical_value(name: str, value: Any) -> Any:
    return aliases()[name].translate(value) if name in aliases() else value


def _typed(key: str, value: Any, hint: Any, choices: Any = None) -> Any:
    try:
        return convert(value, hint, choices)
    except MismatchError as error:
        raise ConfigError(f"--{key} {shown(key, value)}: must be {error}.") from error


def _check_dropped(key: str, value: Any, run: RunConfig) -> None:
    """Refuse a value that asks for something else than what happens anyway."""
    rule = DROPPED[key]
    if rule.any_value:
        return
    typed = None if rule.hint is Any and _says_nothing(value) else _typed(key, value, rule.hint)
    same = {**flatten(run), **run.raw}.get(rule.same_as) if rule.same_as else None
    if not (typed in rule.harmless or (same is not None and typed == same)):
        raise ConfigError(f"--{key} {shown(key, value)}: {rule.cure}.")


def _says_nothing(value: Any) -> bool:
    return value in (None, "", [], {}) or str(value).lower() in NONE_WORDS


def _restate_warmup_ratio(draft: _Draft, key: str, value: Any) -> None:
    share = _typed(key, value, float)
    if not 0 <= share < 1:
        raise ConfigError(f"--{key} {value}: must be at least 0 and below 1.")
    # transformers 4 lets warmup_steps win where both are given; so do we.
    if not draft.values.get("warmup_steps"):
        draft.values["warmup_steps"] = share
        draft.written["warmup_steps"] = key


def _restate_logging_dir(draft: _Draft, key: str, value: Any) -> None:
    folder = _typed(key, value, str | None)
    name = RESTATED[key].setting.removeprefix("environment.")
    before = draft.environment.get(name)
    if before is not None and folder is not None and before != folder:
        raise ConfigError(f"--{key} {folder} and {name}={before} contradict each other. Leave one of them out.")
    if folder is not None:
        draft.environment[name] = folder


def _restate_tokens_per_second(draft: _Draft, key: str, value: Any) -> None:
    # Where tokens are counted, their rate is reported with them.
    target = RESTATED[key].setting
    if _typed(key, value, bool) and target not in draft.values:
        draft.put(target, True, key)


def _restate_fsdp_min_num_params(draft: _Draft, key: str, value: Any) -> None:
    number = _typed(key, value, int)
    if number > 0:
        _put_fsdp(draft, key, "min_num_params", number)


def _restate_fsdp_layer(draft: _Draft, key: str, value: Any) -> None:
    names = _typed(key, value, str | None)
    if names is not None:
        _put_fsdp(draft, key, "transformer_layer_cls_to_wrap", [name.strip() for name in names.split(",")])


def _put_fsdp(draft: _Draft, key: str, name: str, value: Any) -> None:
    config = draft.values.get("fsdp_config") or {}
    if not isinstance(config, Mapping):
        raise ConfigError(f'--{key}: write it into {config} (the file of --fsdp_config) as "{name}".')
    before = config.get(name, config.get(f"fsdp_{name}", value))
    if before not in (value, ",".join(value) if isinstance(value, list) else value):
        raise ConfigError(
            f"--{key} {spell(value)} and {name}: {spell(before)} in --fsdp_config contradict each other. "
            "Leave one of them out."
        )
    draft.values["fsdp_config"] = {**config, name: value}
    draft.written["fsdp_config"] = key


_RESTATE: Mapping[str, Callable[[_Draft, str, Any], None]] = {
    "warmup_ratio": _restate_warmup_ratio,
    "logging_dir": _restate_logging_dir,
    "include_tokens_per_second": _restate_tokens_per_second,
    "fsdp_min_num_params": _restate_fsdp_min_num_params,
    "fsdp_transformer_layer_cls_to_wrap": _restate_fsdp_layer,
}


def _known_names(shape: _Shape) -> list[str]:
    """Return the names that an unknown one may be a slip of."""
    known = [*own_fields(), *shape.fields, *aliases(), *RESTATED, *SETTLED]
    # Whoever asks for another size of images must not be led to the setting that refuses them.
    known.remove("max_image_pixels")
    return known


def _explain(key: str, run: RunConfig, known: list[str]) -> str:
    owners = [name for name, declaration in declarations().items() if key in declaration.flags]
    if run.backend in owners:
        return f"--{key} is not known to the installed version of the {run.backend} backend's packages; leave it out."
    if owners:
        # One that has a switch of its own, where there is one.
        asking = min(map(asking_for, owners), key=lambda words: words.startswith("--backend "))
        whose = f"{owners[0]} backend" if len(owners) == 1 else f"{' and '.join(owners)} backends"
        return f"--{key} is for the {whose}: add {asking}, or leave it out."
    if key in LAUNCHER_KEYS:
        return (
            f"--{key} belongs to the launcher and stands before the name of the verb or script: "
            "vlm-lora launch --world_size 8 train ..."
        )
    for beginning, cure in FAMILIES.items():
        if key.startswith(beginning):
            return f"--{key}: {cure}."
    suggestion = nearest(key, known, likeness=SLIP) or " `vlm-lora train --help_all` lists every key."
    return f"--{key} is not a known key.{suggestion}"


def _plain(value: Any) -> Any:
    """Return a value in the types that YAML has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value
