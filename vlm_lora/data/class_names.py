"""Names of categories that a data set declares for its numbers (`ClassLabel` features of `datasets`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Described(Protocol):
    """A table whose columns' features are declared, as `datasets.Features.to_dict` writes them."""

    @property
    def features(self) -> Mapping[str, Any]:
        """Feature by column; empty where nothing is declared."""


def declared_names(
    features: Mapping[str, Any], column: str, keys: tuple[str, ...]
) -> tuple[str | None, tuple[str, ...]]:
    """Return the first of `keys` that has names declared for its numbers inside a column, and the names.

    None and no names where there is none.
    """
    found = ((key, _search(features.get(column), key, False)) for key in keys)
    return next(((key, names) for key, names in found if names), (None, ()))


def names_of(features: Mapping[str, Any], column: str) -> tuple[str, ...]:
    """Return the names declared for a column's own numbers, or those of its list; empty where there are none."""
    return _search(features.get(column), "", True)


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
