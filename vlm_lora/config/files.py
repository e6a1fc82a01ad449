"""Configuration files: YAML and JSON, read with the line of every mistake, written to read back the same."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from vlm_lora.config.whole_files import write_whole
from vlm_lora.errors import ConfigError

YAML_SUFFIXES = (".yaml", ".yml")
SUFFIXES = (*YAML_SUFFIXES, ".json")

# YAML 1.1 reads 1e-4 as text because it has no dot; everybody who writes it means the number.
_FLOAT = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+|[-+]?\.[0-9][0-9_]*[eE][-+]?[0-9]+")


class _Loader(yaml.SafeLoader):
    """SafeLoader that knows 1e-4 and refuses a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                raise yaml.constructor.ConstructorError(
                    problem=f"'{key.value}' is given twice (first in line {lines[key.value]}); leave one out",
                    problem_mark=key.start_mark,
                )
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes the text `1e-4`, so that it reads back as text."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the keys of a configuration file, nested mappings as they are.

    Raises:
        ConfigError: no such file, another suffix, not readable, not a mapping, or a mistake (with its line).
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: a configuration file ends in {', '.join(SUFFIXES)}.")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such configuration file (looked from {Path.cwd()}).") from error
    except OSError as error:
        raise ConfigError(f"{path}: the configuration file cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: the configuration file is not UTF-8 (byte {error.start}).") from error
    content = _read_yaml(path, text) if path.suffix.lower() in YAML_SUFFIXES else _read_json(path, text)
    if not isinstance(content, dict):
        found = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise ConfigError(f"{path}: {found}; a configuration file is a mapping of keys to values, such as seed: 42.")
    strange = [key for key in content if not isinstance(key, str)]
    if strange:
        raise ConfigError(f"{path}: the key {strange[0]!r} is not text; put quotes around it or correct it.")
    return content


def write_mapping(path: Path, content: Mapping[str, Any], *, heading: str) -> None:
    """Write `content` as YAML under a comment line. The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    write_whole(path, f"# {heading}\n{body}")


def _read_yaml(path: Path, text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{place}: {error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}.") from error


def _read_json(path: Path, text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise ConfigError(f"{path}: '{key}' is given twice; leave one out.")
            seen[key] = value
        return seen

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}.") from error
