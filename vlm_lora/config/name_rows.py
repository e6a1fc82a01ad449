"""What a row of the tables of names says: one kind of row for each thing that can become of a name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlm_lora.config.declaration import Alias

TRANSFORMERS = "transformers"


@dataclass(frozen=True, kw_only=True)
class Implied:
    """A setting that brings another with it, unless that one is given."""

    name: str
    """Of the setting, or another name of it: then that name alone brings the other, as those who type it expect."""
    setting: str
    value: str
    """`{value}` in it is the first one's."""
    when: Any = None
    """The value that brings the other; None for any that is not empty."""
    unless: tuple[str, ...] = ()
    """Further settings of which none may be given."""


@dataclass(frozen=True, kw_only=True)
class Restated:
    """A key that transformers 5 says differently; `resolution` has a function for each."""

    name: str
    setting: str
    """What it becomes."""
    text: str
    """How that reads."""
    users: str = f"{TRANSFORMERS} 4"


@dataclass(frozen=True, kw_only=True)
class Ignored:
    """A mapping that is accepted without effect: rows are always prepared here."""

    name: str
    keys: frozenset[str]
    """Those that it may hold."""
    users: str


@dataclass(frozen=True, kw_only=True)
class Settled:
    """A name that says what others mean; `sources` has a function for it."""

    name: str
    text: str
    """How that reads."""
    users: str


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A key that there is not here: which values lose nothing, and what to do about the others."""

    name: str
    cure: str
    """What to do about other values, as the end of a sentence."""
    hint: Any = Any
    """Its type."""
    harmless: tuple[Any, ...] = ()
    """Values that ask for what happens anyway."""
    any_value: bool = False
    """Whether every value loses nothing."""
    same_as: str = ""
    """A setting of ours whose value it may repeat."""
    users: str = f"{TRANSFORMERS} 4"
    """Whose key it is."""


OtherName = Alias | Implied | Restated | Ignored | Dropped | Settled


def only(users: str, cure: str, **harmless: Any) -> tuple[Dropped, ...]:
    """Return names with the value that is accepted of each (a tuple for several), in addition to null."""
    rows = []
    for name, given in harmless.items():
        values = given if isinstance(given, tuple) else (given,)
        accepted = (*(value for value in values if value is not None), None)
        rows.append(Dropped(name=name, hint=_hint(values), harmless=accepted, cure=cure, users=users))
    return tuple(rows)


def _hint(values: tuple[Any, ...]) -> Any:
    kinds: tuple[tuple[type, Any], ...] = (
        (bool, bool | None),
        (float, float | None),
        (int, int | None),
        (str, str | None),
        (list, list[Any] | None),
        (dict, Mapping[str, Any] | None),
    )
    return next((hint for kind, hint in kinds if any(isinstance(value, kind) for value in values)), Any)


def refused(users: str, cure: str, names: str) -> tuple[Dropped, ...]:
    """Return names of which null alone is accepted."""
    return only(users, cure, **dict.fromkeys(names.split()))


def no_effect(users: str, names: str) -> tuple[Dropped, ...]:
    """Return settings of how another tool works inside, which change nothing of what is trained."""
    return tuple(Dropped(name=name, any_value=True, cure="", users=users) for name in names.split())


def choice(users: str, name: str, canonical: str, words: Mapping[str, Any], others: str = "") -> Alias:
    """Return another name of a setting, whose values have other names, too."""
    return Alias(name=name, canonical=canonical, users=users, words=words, others=others)
