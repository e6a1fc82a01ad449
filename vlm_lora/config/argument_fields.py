"""The fields of a trainer's arguments class, read from its source file: nothing is imported, so a check costs no start.

A contract test holds names, types and choices equal to those of the classes that are installed.
"""

from __future__ import annotations

import ast
import dataclasses
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vlm_lora.config.declaration import declarations


class _AnyInstance(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return True


class Unjudged(metaclass=_AnyInstance):
    """Stands for a type that the source file alone does not tell: every value is one, and the class itself judges."""


def arguments_like(name: str) -> type | None:
    """Return a dataclass with the fields that a backend's arguments class has; metadata: help, default, choices.

    Args:
        name: of an installed backend; `auto` stands for the fields of all of them together.

    Returns:
        None where the package that has the class is not installed.
    """
    found = declarations()
    wanted = [found[name]] if name in found else list(found.values())
    shapes = [shape for declaration in wanted if (shape := _shape(declaration.arguments)) is not None]
    if not shapes:
        return None
    merged = {field: declared for shape in shapes for field, declared in shape.items()}
    return dataclasses.make_dataclass("Arguments", [(field, *declared) for field, declared in merged.items()])


@cache
def _shape(places: tuple[str, ...]) -> Mapping[str, tuple[Any, Any]] | None:
    """Return annotation and default of each field, the base class's first; None where file or class is not there."""
    fields: dict[str, tuple[Any, Any]] = {}
    for place in places:
        module, _, name = place.partition(":")
        path = _file_of(module)
        if path is None:
            return None
        source = _source(path)
        if not source.has(name):
            return None
        fields |= dict(source.fields_of(name))
    return fields


def _file_of(module: str) -> Path | None:
    """Return a module's file without importing the packages that it lies in."""
    top, *rest = module.split(".")
    spec = find_spec(top)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, *rest).with_suffix(".py")
        if path.is_file():
            return path
    return None


class _Source:
    """One file: its dataclass, and the enumerations that it defines or takes from its neighbours."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tree = ast.parse(path.read_text(encoding="utf-8"))
        self._classes = {node.name: node for node in self._tree.body if isinstance(node, ast.ClassDef)}
        self._names = _Names(self)

    def has(self, name: str) -> bool:
        """Say whether the file defines a class of this name."""
        return name in self._classes

    def fields_of(self, name: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
        """Yield each field that can be given, as (name, (type, field))."""
        for node in self._classes[name].body:
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            keywords = self._keywords(node.value)
            if keywords.get("init") is False:
                continue
            metadata = {"help": keywords.get("help") or "", "default": keywords.get("default")}
            if keywords.get("choices"):
                metadata["choices"] = list(keywords["choices"])
            declared = dataclasses.field(default=None, metadata=metadata)
            yield node.target.id, (self._evaluated(node.annotation, Unjudged), declared)

    def enumeration(self, name: str) -> Any:
        """Return an enumeration with the members that the source has, or `Unjudged` for any other name."""
        node = self._classes.get(name)
        if node is not None:
            members = {
                target.id: part.value.value
                for part in node.body
                if isinstance(part, ast.Assign) and isinstance(part.value, ast.Constant)
                for target in part.targets
                if isinstance(target, ast.Name)
            }
            return Enum(name, members, type=str) if members else Unjudged
        for part in self._tree.body:
            if isinstance(part, ast.ImportFrom) and any((one.asname or one.name) == name for one in part.names):
                neighbour = self._neighbour(part)
                return neighbour.enumeration(name) if neighbour else Unjudged
        return Unjudged

    def _neighbour(self, node: ast.ImportFrom) -> _Source | None:
        if node.level == 0:
            path = _file_of(node.module or "")
        else:
            path = Path(self._path.parents[node.level - 1], *(node.module or "").split(".")).with_suffix(".py")
        return _source(path) if path is not None and path.is_file() else None

    def _keywords(self, value: ast.expr | None) -> dict[str, Any]:
        """Return the keywords of `field(...)` that the source alone tells."""
        if not isinstance(value, ast.Call):
            return {}
        found = {}
        for keyword in value.keywords:
            if keyword.arg == "metadata" and isinstance(keyword.value, ast.Dict):
                for key, part in zip(keyword.value.keys, keyword.value.values, strict=True):
                    if isinstance(key, ast.Constant) and key.value in ("choices", "help"):
                        found[str(key.value)] = self._evaluated(part, None)
            elif keyword.arg == "init":
                found["init"] = self._evaluated(keyword.value, None)
            elif keyword.arg == "default":
                found["default"] = self._default(keyword.value)
        return found

    def _default(self, node: ast.expr) -> Any:
        """Return a default: a literal, or the value of an enumeration's member."""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            member = getattr(self._names[node.value.id], node.attr, None)
            return member.value if isinstance(member, Enum) else None
        found = self._evaluated(node, None)
        return None if found is Unjudged else found

    def _evaluated(self, node: ast.expr, otherwise: Any) -> Any:
        """Return an annotation's or a literal's value; only names and what joins them are ever looked at."""
        if any(isinstance(part, ast.Call | ast.Lambda | ast.Attribute) for part in ast.walk(node)):
            return otherwise
        expression = ast.fix_missing_locations(ast.Expression(node))
        try:
            return eval(compile(expression, str(self._path), "eval"), {"__builtins__": {}}, self._names)
        except Exception:  # a form of annotation that this reader does not know: the class itself judges
            return otherwise


@cache
def _source(path: Path) -> _Source:
    return _Source(path)


class _Names(dict[str, Any]):
    """What names in annotations stand for."""

    def __init__(self, source: _Source) -> None:
        plain = {kind.__name__: kind for kind in (bool, int, float, str, list, dict, tuple)}
        super().__init__({**plain, **{name: getattr(typing, name) for name in ("Any", "Literal", "Optional", "Union")}})
        self._source = source

    def __missing__(self, name: str) -> Any:
        self[name] = self._source.enumeration(name)
        return self[name]
