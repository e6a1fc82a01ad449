"""Values from flags and files, turned into the type that a field declares.

One conversion serves our own dataclasses and a backend's arguments class, so `False`, `no` and `0` mean the
same everywhere, and a wrong value always learns what is allowed.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

TRUE_WORDS = ("true", "yes", "1", "t", "y", "on")
FALSE_WORDS = ("false", "no", "0", "f", "n", "off")
NONE_WORDS = ("none", "null")

SWITCHES = (bool, bool | None)
"""Types of fields that are flags without a value: `--key` and `--no_key`."""


class MismatchError(ValueError):
    """A value that does not fit its declared type; the message says what would."""


def convert(value: Any, hint: Any, choices: Iterable[Any] | None = None) -> Any:
    """Return `value` as `hint` declares it: text is parsed, typed values are checked.

    Args:
        value: text from a flag, or whatever YAML and JSON hold.
        hint: a resolved annotation: bool, int, float, str, Enum, Literal, list, tuple, Mapping, or unions.
        choices: the allowed values, where the field names them.

    Raises:
        MismatchError: the value does not fit; its message completes the sentence `must be ...`.
    """
    converted = _convert(value, hint)
    if choices is not None and converted is not None and converted not in (allowed := list(choices)):
        raise MismatchError(f"one of {', '.join(map(str, allowed))}")
    return converted


def is_true(value: Any) -> bool:
    """Say whether an unchecked value reads as true; one that is no truth value reads as false."""
    try:
        return bool(convert(value, bool)) if value is not None else False
    except MismatchError:
        return False


def expected(hint: Any) -> str:
    """Say in words what values `hint` allows."""
    if _is_union(hint):
        members = _members(hint)
        return " or ".join(dict.fromkeys(expected(member) for member in members))
    origin = get_origin(hint) or hint
    if origin is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if not isinstance(origin, type):
        return "any value"
    if issubclass(origin, Enum):
        return f"one of {', '.join(str(member.value) for member in origin)}"
    if issubclass(origin, Mapping):
        return "a mapping, or its JSON text"
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text (in a file: put quotes around it)",
        list: "a list",
        tuple: "a list",
    }
    return words.get(origin, f"a {origin.__name__}, which cannot be written in a configuration")


def spell(value: Any) -> str:
    """Write a value as the user would type it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (Mapping, list, tuple)):
        return json.dumps(value, default=str, ensure_ascii=False)
    return repr(value) if value == "" else str(value)


def _convert(value: Any, hint: Any) -> Any:
    if hint is Any:
        return value
    if _is_union(hint):
        return _to_member(value, hint)
    origin = get_origin(hint) or hint
    if origin is Literal:
        return _to_literal(_as_switched(value, get_args(hint)), get_args(hint), hint)
    if not isinstance(origin, type):
        raise MismatchError(expected(hint))
    if issubclass(origin, Enum):
        # YAML reads a bare `no` as false; `eval_strategy: no` is what its writer meant.
        spelled = "no" if value is False else value
        return _to_literal(spelled, tuple(member.value for member in origin), hint)
    if issubclass(origin, Mapping):
        return _to_mapping(value, hint)
    if origin in (list, tuple):
        return _to_sequence(value, hint)
    scalars = {bool: _to_bool, int: _to_int, float: _to_float, str: _to_text}
    if origin in scalars:
        return scalars[origin](value)
    if isinstance(value, origin):
        return value
    raise MismatchError(expected(hint))


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).lower() if isinstance(value, (str, int)) else ""
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    raise MismatchError(expected(bool))


def _to_int(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError as error:
            raise MismatchError(expected(int)) from error
    raise MismatchError(expected(int))


def _to_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise MismatchError(expected(float))
    try:
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise MismatchError(expected(float)) from error
    if math.isnan(number):
        raise MismatchError(expected(float))
    return number


def _to_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise MismatchError(expected(str))


def _as_switched(value: Any, allowed: Sequence[Any]) -> Any:
    """Return `on` or `off`, where both are allowed, for what says true or false; YAML reads them bare as such."""
    if not {"on", "off"} <= set(allowed):
        return value
    word = str(value).lower()
    return "on" if word in TRUE_WORDS else "off" if word in FALSE_WORDS else value


def _to_literal(value: Any, allowed: Sequence[Any], hint: Any) -> Any:
    for choice in allowed:
        if value == choice and type(value) is type(choice):
            return choice
        if isinstance(value, str) and not isinstance(choice, str) and value.lower() == str(choice).lower():
            return choice
    raise MismatchError(expected(hint))


def _to_mapping(value: Any, hint: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise MismatchError(f"{expected(hint)} ({error.msg} at character {error.pos + 1})") from error
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise MismatchError(expected(hint))
    arguments = get_args(hint)
    return {key: _convert(item, arguments[1] if arguments else Any) for key, item in value.items()}


def _to_sequence(value: Any, hint: Any) -> list[Any] | tuple[Any, ...]:
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise MismatchError(f"a list, or its JSON text ({error.msg} at character {error.pos + 1})") from error
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    arguments = get_args(hint)
    converted = [_convert(item, arguments[0] if arguments else Any) for item in items]
    return tuple(converted) if (get_origin(hint) or hint) is tuple else converted


def _to_member(value: Any, hint: Any) -> Any:
    """Convert to the first member of a union that takes the value, the most specific one first."""
    members = _members(hint)
    optional = type(None) in get_args(hint)
    if optional and value is None:
        return None
    if optional and str not in members and isinstance(value, str) and value.lower() in NONE_WORDS:
        return None
    mappings = [member for member in members if _rank(member) == _MAPPING]
    if mappings and isinstance(value, str) and value.lstrip().startswith("{"):
        return _convert(value, mappings[0])  # broken JSON is an error, not the name of a file
    for member in sorted(members, key=_rank):
        try:
            return _convert(value, member)
        except MismatchError:
            continue
    raise MismatchError(expected(hint))


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _members(hint: Any) -> list[Any]:
    """Return a union's members without None, and without `str` where it only repeats an Enum's values."""
    members = [member for member in get_args(hint) if member is not type(None)]
    if any(isinstance(member, type) and issubclass(member, Enum) for member in members):
        return [member for member in members if member is not str]
    return members


_MAPPING = 5


def _rank(hint: Any) -> int:
    origin = get_origin(hint) or hint
    if origin is Literal:
        return 0
    if not isinstance(origin, type):
        return 9
    if issubclass(origin, Enum):
        return 1
    if issubclass(origin, Mapping):
        return _MAPPING
    # Text before a list: one word stays a word where both are allowed, and only real lists become lists.
    return {bool: 2, int: 3, float: 4, str: 6, list: 7, tuple: 7}.get(origin, 8)
