"""From the command line and configuration files to a RunConfig, without importing torch or transformers.

Stages:
    1. words     `argv` -> (key, value) pairs; dashes and underscores are the same; `--no_key` is false
    2. file      `--config FILE`, or one positional file, or the environment -> (key, value) pairs
    3. meaning   aliases become their canonical name; our own fields are set at once
    4. merge     flags win over the file; within one source a contradiction is an error that names both
    5. assembly  our fields fill the dataclasses; other keys wait in `RunConfig.raw` for the backend's class
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_lora.config.aliases import CONFIG_VARIABLES, IGNORED, IMPLIED, aliases, canonical_name, shown
from vlm_lora.config.fields import SECTIONS, assemble, own_fields
from vlm_lora.config.files import SUFFIXES, read_mapping
from vlm_lora.config.repeated import find_record, read_settings, refuse_masked
from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.values import (
    FALSE_WORDS,
    NONE_WORDS,
    SWITCHES,
    TRUE_WORDS,
    MismatchError,
    convert,
    expected,
    spell,
)
from vlm_lora.errors import ConfigError, Refusals, UserError

AUTO = "auto"
"""What `--backend` is without it: no answer, so any other name for a backend wins over it."""

CPU_VARIABLE = "ACCELERATE_USE_CPU"
"""Set by `accelerate launch --cpu`; the training arguments read it too."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*(\.[A-Za-z0-9_]+)?")
_ENVIRONMENT = "environment."
_NEEDED = ("model_name_or_path", "dataset_name", "output_dir")
"""What a record would have given: where it cannot be read, nobody need miss them, too."""
WEIGHTS_ONLY, _RESUME, _FROM_RUN = "load_model_only", "resume_from_checkpoint", "from_run"


@dataclass(frozen=True, kw_only=True)
class _Given:
    """One setting as one source gives it."""

    value: Any
    written: str
    """As the user wrote it, for messages: `--lora_r 8`, or `lora_r: 8 (run.yaml)`."""
    implied: tuple[Any, ...] = ()
    """Values that say the same more exactly."""
    name: str = ""
    """The name that it was given by."""


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """A key and its value before they mean anything."""

    name: str
    value: Any
    file: Path | None

    def written(self, value: Any) -> str:
        if self.file is not None:
            return f"{self.name}: {shown(self.name, value)} ({self.file})"
        return f"--{self.name} {shown(self.name, ' '.join(value) if isinstance(value, list) else value)}"


def parse(argv: Sequence[str], *, environ: Mapping[str, str], refused: Refusals | None = None) -> RunConfig:
    """Return what the command line and its configuration file ask for.

    Args:
        argv: the words after the verb. A flag takes the words up to the next flag; `--key=value` takes one.
        environ: the process's environment, which may name a configuration file (`VLM_LORA_CONFIG`).
        refused: gathers what cannot be used, and the run comes back without it; None raises it.

    Raises:
        ConfigError: words, values or a file that cannot be used. Keys that are not ours are not judged here.
    """
    gathered = refused or Refusals()
    positional, pairs = _read_words(argv, gathered)
    named = [pair for pair in pairs if pair.name == "config"]
    flags = _settle((pair for pair in pairs if pair.name != "config"), gathered)
    path, content = _configuration_file(positional, named, environ, gathered)
    if path is not None and _FROM_RUN in flags:
        said = f"{flags.pop(_FROM_RUN).written} and the configuration file {path} contradict each other. Leave one out."
        gathered.note(ConfigError(said), _FROM_RUN)
    merged = {**_settle(_pairs_of_file(path, content, gathered), gathered), **flags}
    run = _finish(_with_repeated(merged, gathered), environ, gathered)
    if refused is None:
        gathered.raise_any()
    return run


def _with_repeated(given: dict[str, _Given], refused: Refusals) -> dict[str, _Given]:
    """Return the settings with those of the run that `--from_run` names below them."""
    if _FROM_RUN not in given:
        return given
    earlier: dict[str, _Given] = {}
    with refused.noting(*_NEEDED):
        path = find_record(given[_FROM_RUN].value)
        pairs = (_Pair(name=name, value=value, file=path) for name, value in read_settings(path).items())
        earlier = _settle(pairs, refused)
        given = {**given, _FROM_RUN: _Given(value=str(path), written=given[_FROM_RUN].written)}
        refuse_masked({name: each.value for name, each in earlier.items() if name not in given}, path)
    return {**earlier, **given}


def _finish(merged: dict[str, _Given], environ: Mapping[str, str], refused: Refusals) -> RunConfig:
    with refused.noting():
        _imply(merged)
    with refused.noting():
        _take_weights_only(merged)
    with refused.noting():
        _take_cpu(merged, environ)
    return _assemble(merged, refused)


def _imply(merged: dict[str, _Given]) -> None:
    """Add what a given setting stands for in addition to itself."""
    given_before = set(merged)
    for row in IMPLIED:
        given = next((each for key, each in merged.items() if row.name in (key, each.name)), None)
        if given is None or row.setting in merged or given_before.intersection(row.unless):
            continue
        if given.value == row.when if row.when is not None else given.value:
            field = own_fields().get(row.setting)
            value = row.value.format(value=given.value)
            merged[row.setting] = _Given(value=field.typed(value) if field else value, written=given.written)


def _take_weights_only(merged: dict[str, _Given]) -> None:
    """Read `--load_model_only` next to a checkpoint: its weights are the model to begin with, and nothing is resumed.

    Raises:
        ConfigError: no checkpoint is named, or it is neither true nor false.
    """
    asked = merged.pop(WEIGHTS_ONLY, None)
    checkpoint = merged.get(_RESUME)
    if asked is None:
        return
    try:
        if not convert(asked.value, bool) or checkpoint is None:
            return
    except MismatchError as error:
        raise ConfigError(f"{asked.written}: must be {error}.") from error
    words = str(checkpoint.value).lower()
    if checkpoint.value is None or words in (*FALSE_WORDS, *NONE_WORDS):
        return
    if not isinstance(checkpoint.value, str) or words in TRUE_WORDS:
        raise ConfigError(
            f"{asked.written} with {checkpoint.written}: the checkpoint whose weights are loaded must be named: type "
            f"--{_RESUME} DIR/checkpoint-N (--list_checkpoints DIR shows them)."
        )
    del merged[_RESUME]
    merged["model_name_or_path"] = _Given(value=checkpoint.value, written=checkpoint.written)


def from_settings(settings: Mapping[str, Any], *, environ: Mapping[str, str]) -> RunConfig:
    """Return what a program asks for, by the names of the flags; its launcher may ask for the CPU.

    Raises:
        ConfigError: as `parse`.
    """
    pairs = (
        _Pair(name=name, value=str(value) if isinstance(value, Path) else value, file=None)
        for name, value in settings.items()
    )
    refused = Refusals()
    run = _finish(_with_repeated(_settle(pairs, refused), refused), environ, refused)
    refused.raise_any()
    return run


def _take_cpu(merged: dict[str, _Given], environ: Mapping[str, str]) -> None:
    """Read accelerate's variable for the CPU, which its launcher sets, as `--use_cpu`."""
    text = environ.get(CPU_VARIABLE, "")
    if text.lower() not in ("1", "true", "yes", "on", "y", "t"):
        return
    written = f"{CPU_VARIABLE}={text}"
    asked = merged.get("backend")
    if asked is not None and asked.value not in (AUTO, "cpu"):
        raise ConfigError(f"{asked.written} and {written} contradict each other. Leave one of them out.")
    merged["backend"] = _Given(value="cpu", written=written)


def _read_words(argv: Sequence[str], refused: Refusals) -> tuple[list[str], list[_Pair]]:
    """Split `argv` into the words before the first flag and (key, value) pairs in order."""
    positional: list[str] = []
    pairs: list[_Pair] = []
    index = 0
    while index < len(argv):
        word = argv[index]
        index += 1
        if not word.startswith("--"):
            positional.append(word)
            continue
        name, equals, text = word[2:].partition("=")
        start = index
        while not equals and index < len(argv) and not argv[index].startswith("--"):
            index += 1
        with refused.noting(name.replace("-", "_")):
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"{word}: not a flag; a flag is two dashes and a name. "
                    "A value that starts with two dashes is written --key=--value."
                )
            pairs.append(_pair(name, [text] if equals else list(argv[start:index])))
    return positional, pairs


def _pair(name: str, texts: list[str]) -> _Pair:
    """Make a pair of a flag and its words: none is true (false for `--no_key`), several are a list."""
    name = name.replace("-", "_")
    known = name in own_fields() or name in aliases()
    base = name.removeprefix("no_")
    if base != name and not known:
        alias = aliases().get(base)
        own = own_fields().get(base if alias is None else alias.canonical)
        is_switch = (alias is not None and alias.values is not None) or own is None or own.hint in SWITCHES
        if not is_switch:
            raise ConfigError(f"--{name}: --{base} is not a switch, so it has no --no_ form; give it another value.")
        if not texts:
            return _Pair(name=base, value=False, file=None)
        if own is not None:
            raise ConfigError(f"--{name} {' '.join(texts)}: takes no value; type --{name} alone, or --{base} false.")
    if not texts:
        return _Pair(name=name, value=True, file=None)
    return _Pair(name=name, value=texts[0] if len(texts) == 1 else texts, file=None)


def _configuration_file(
    positional: list[str], named: list[_Pair], environ: Mapping[str, str], refused: Refusals
) -> tuple[Path | None, Mapping[str, Any]]:
    """Return the one configuration file and what it holds; where it cannot be read, nothing more can be said."""
    path: Path | None = None
    content: Mapping[str, Any] = {}
    try:
        path = _config_path(positional, named, environ)
        content = read_mapping(path) if path else {}
    except UserError as error:
        refused.note(error)
        refused.raise_any()
    return path, content


def _config_path(positional: list[str], named: list[_Pair], environ: Mapping[str, str]) -> Path | None:
    """Find the one configuration file: `--config`, else the positional word, else the environment."""
    stray = [word for word in positional if not word.lower().endswith(SUFFIXES)]
    if stray or len(positional) > 1:
        raise ConfigError(
            f"Unexpected {' '.join(stray or positional)}: the words are flags (--key value), "
            f"and at most one configuration file ({', '.join(SUFFIXES)}) before them."
        )
    if len(named) + len(positional) > 1:
        raise ConfigError("More than one configuration file is given. Leave --config out, or all but one of them.")
    if named:
        if not isinstance(named[0].value, str) or not named[0].value:
            raise ConfigError("--config: needs one file, for example --config run.yaml.")
        return Path(named[0].value)
    if positional:
        return Path(positional[0])
    for variable in CONFIG_VARIABLES:
        if environ.get(variable):
            return Path(environ[variable])
    return None


def _pairs_of_file(path: Path | None, content: Mapping[str, Any], refused: Refusals) -> Iterator[_Pair]:
    for name, value in content.items():
        key = name.replace("-", "_")
        if key in ("config", _FROM_RUN):
            said = f"{path}: a configuration file cannot name another ({key}: {spell(value)})."
            refused.note(ConfigError(said), key)
        elif key in (*SECTIONS, "raw"):
            said = f"{path}: '{name}' is not a key. The keys are flat: write seed: 42, without sections."
            refused.note(ConfigError(said), key)
        else:
            yield _Pair(name=key, value=value, file=path)


def _settle(pairs: Iterable[_Pair], refused: Refusals) -> dict[str, _Given]:
    """Return one source's settings under canonical names. A contradiction is an error that names both."""
    settled: dict[str, _Given] = {}
    for pair in pairs:
        with refused.noting(pair.name, canonical_name(pair.name)):
            _settle_one(settled, pair)
    return settled


def _settle_one(settled: dict[str, _Given], pair: _Pair) -> None:
    for name, given in _interpret(pair):
        before = settled.get(name)
        if before is not None and name == "backend" and AUTO in (before.value, given.value):
            settled[name] = given if before.value == AUTO else before
            continue
        if before is not None and (before.value in given.implied or given.value in before.implied):
            settled[name] = before if before.value in given.implied else given
            continue
        if before is not None and not _same(before.value, given.value):
            raise ConfigError(f"{before.written} and {given.written} contradict each other. Leave one of them out.")
        settled[name] = given


def _interpret(pair: _Pair) -> Iterator[tuple[str, _Given]]:
    """Yield the settings that one pair stands for: usually one, none for a name without effect."""
    name, value = pair.name, pair.value
    if name in IGNORED:
        _check_ignored(pair)
        return
    if name == "environment":
        for variable, text in _typed(pair, value, Mapping[str, Any]).items():
            yield from _variable(pair, f"{_ENVIRONMENT}{variable}", text)
        return
    implied: tuple[Any, ...] = ()
    if name in aliases():
        alias = aliases()[name]
        implied = alias.implied
        try:
            value = alias.translate(value)
        except MismatchError as error:
            raise _refusal(pair, pair.value, error) from error
        name = alias.canonical
        if value is None and (pair.value is not None or alias.chooses):
            return
    if name.startswith(_ENVIRONMENT):
        if value is not None:
            yield from _variable(pair, name, value)
        return
    if name in own_fields() and not _is_backends_debug(name, value):
        value = _own_value(pair, name, value)
    yield name, _Given(value=value, written=pair.written(pair.value), implied=implied, name=pair.name)


def _own_value(pair: _Pair, name: str, value: Any) -> Any:
    field = own_fields()[name]
    if isinstance(value, str) and not value.strip():
        raise ConfigError(f"{pair.written('')}: is empty. Give a value, or leave the key out.")
    if field.hint not in SWITCHES:
        _need_value(pair, value, field.hint)
    try:
        return field.typed(value)
    except MismatchError as error:
        raise _refusal(pair, pair.value, error) from error


def _variable(pair: _Pair, name: str, value: Any) -> Iterator[tuple[str, _Given]]:
    """Yield an environment variable; a whole number is taken as its digits, as in `PT_HPU_LAZY_MODE: 1`."""
    _need_value(pair, value, str)
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    yield name, _Given(value=_typed(pair, text, str), written=pair.written(pair.value))


def _typed(pair: _Pair, value: Any, hint: Any) -> Any:
    try:
        return convert(value, hint)
    except MismatchError as error:
        raise _refusal(pair, value, error) from error


def _need_value(pair: _Pair, value: Any, hint: Any) -> None:
    """Refuse a bare flag where its setting is more than true or false."""
    if pair.file is None and value is True:
        raise ConfigError(f"--{pair.name}: needs a value: {expected(hint).split(' (')[0]}.")


def _refusal(pair: _Pair, value: Any, error: MismatchError) -> ConfigError:
    # A flag's text needs no quotes; only a file's value can be something else than text.
    wanted = str(error) if pair.file else str(error).replace(" (in a file: put quotes around it)", "")
    return ConfigError(f"{pair.written(value)}: must be {wanted}.")


def _check_ignored(pair: _Pair) -> None:
    allowed = IGNORED[pair.name].keys
    unknown = sorted(set(_typed(pair, pair.value, Mapping[str, Any])) - allowed)
    if unknown:
        raise ConfigError(
            f"{pair.name}: {', '.join(unknown)} cannot be used here; "
            f"only {', '.join(sorted(allowed))} is accepted, and has no effect."
        )


def _is_backends_debug(name: str, value: Any) -> bool:
    """`--debug` alone or with true or false is ours; `--debug underflow_overflow` is the backend's."""
    if name != "debug":
        return False
    try:
        convert(value, bool)
    except MismatchError:
        return bool(value)
    return False


def _same(first: Any, second: Any) -> bool:
    """Compare values as their texts would be understood: 3 is 3.0, true is True."""
    if first == second:
        return True
    left, right = str(first).lower(), str(second).lower()
    try:
        return left == right or float(left) == float(right)
    except ValueError:
        return False


def _assemble(merged: Mapping[str, _Given], refused: Refusals) -> RunConfig:
    """Sort merged settings into our fields, environment variables and the backend's keys."""
    own: dict[str, Any] = {}
    raw: dict[str, Any] = {}
    environment: dict[str, str] = {}
    for name, given in merged.items():
        if name.startswith(_ENVIRONMENT):
            environment[name.removeprefix(_ENVIRONMENT)] = given.value
        elif name in own_fields() and not _is_backends_debug(name, given.value):
            own[name] = given.value
        else:
            raw[name] = given.value
    if environment:
        own["environment"] = environment
    return assemble(own, raw, refused)
