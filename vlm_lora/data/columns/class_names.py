"""Names of categories that a data set declares for its numbers (`ClassLabel` features of `datasets`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from vlm_lora.data.wording import short
from vlm_lora.errors import DataError

Declared: TypeAlias = tuple[str, Mapping[str, Any]]
"""A file, and the feature by column that it declares."""


@runtime_checkable
class Described(Protocol):
    """A table whose columns' features are declared, as `datasets.Features.to_dict` writes them."""

    @property
    def features(self) -> Mapping[str, Any]:
        """Feature by column; empty where nothing is declared."""


def declared_names(
    declared: Sequence[Declared], column: str, keys: tuple[str, ...]
) -> tuple[str | None, tuple[str, ...]]:
    """Return the first of `keys` that has names declared for its numbers inside a column, and the names.

    None and no names where there is none.

    Raises:
        DataError: files declare different ones.
    """
    return _agreed(column, ((file, _first(features.get(column), keys)) for file, features in declared))


def names_of(declared: Sequence[Declared], column: str) -> tuple[str, ...]:
    """Return the names declared for a column's own numbers, or those of its list; empty where there are none.

    Raises:
        DataError: files declare different ones.
    """
    found = ((file, (None, _search(features.get(column), "", True))) for file, features in declared)
    return _agreed(column, found)[1]


_Named: TypeAlias = tuple[str | None, tuple[str, ...]]
"""The key of numbers inside a column, None for the column's own, and their names."""


def _agreed(column: str, found: Iterable[tuple[str, _Named]]) -> _Named:
    """Return what all files say that name numbers."""
    said = [(file, named) for file, named in found if named[1]]
    for file, named in said[1:]:
        first, names = said[0]
        if named != names:
            raise DataError(
                f"Column '{column}': {first} declares {_told(names)} for its numbers, and {file} {_told(named)}, so a "
                "number does not mean the same in both. Write the names into the rows instead of the numbers, or read "
                f"the files as data sets of their own: --dataset_name {first} {file}."
            )
    return said[0][1] if said else (None, ())


def _told(named: _Named) -> str:
    return short(named[1]) if named[0] is None else f"{short(named[1])} under '{named[0]}'"


def _first(feature: Any, keys: tuple[str, ...]) -> _Named:
    found = ((key, _search(feature, key, False)) for key in keys)
    return next(((key, names) for key, names in found if names), (None, ()))


def _search(feature: Any, key: str, inside: bool) -> tuple[str, ...]:
    """Return the names of the first ClassLabel at or below `key`."""
    if isinstance(feature, Mapping):
        if inside and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list | tuple):
            return tuple(map(str, feature["names"]))
        found = (_search(inner, key, inside or name == key) for name, inner in feature.items())
    elif isinstance(feature, list | tuple):
        found = (_search(inner, key, inside) for inner in feature)
    else:
        return ()
    return next((names for names in found if names), ())
