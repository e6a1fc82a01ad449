"""Names of registered models, `models:/NAME/VERSION`, as far as they are known without the registry."""

from __future__ import annotations

import re
from importlib.util import find_spec

from vlm_lora.errors import ConfigError

SCHEME = "models:/"
PACKAGES = ("mlflow", "sqlalchemy", "alembic")
"""Modules that the extra `mlflow` brings; a store in a file needs the last two."""
FINDERS = ("eval", "ask", "merge")
"""The verbs that take such a name."""
_WHOLE = re.compile(r"models:/(?P<name>[^/@:'\"]+)(?:/(?P<version>\d+|latest)|@(?P<alias>[^/@:'\"]+))")
_NAME = re.compile(r"(?=.*\S)[^/@:'\"]+")


def is_registered(name: str | None) -> bool:
    """Say whether a model's name is one of the registry."""
    return name is not None and name.startswith(SCHEME)


def parts_of(name: str) -> tuple[str, str | None, str | None]:
    """Return name, version (a number or `latest`) and alias of a registered model.

    Raises:
        ConfigError: it is written otherwise.
    """
    found = _WHOLE.fullmatch(name)
    if found is None:
        raise ConfigError(
            f"{name}: a registered model is models:/NAME/VERSION, models:/NAME/latest or models:/NAME@ALIAS, for "
            "example models:/charts/1."
        )
    return found["name"], found["version"], found["alias"]


def check_finder(name: str, verb: str) -> None:
    """Refuse a registered model's name that cannot be used.

    Raises:
        ConfigError: it is not written as one, the verb takes none, or the package is missing.
    """
    parts_of(name)
    if verb not in FINDERS:
        raise ConfigError(
            f"{name}: a registered model is for vlm-lora {', '.join(FINDERS)}. For {verb} name a Hub id or a folder."
        )
    refuse_missing_package(name)


def check_new_name(flag: str, name: str) -> None:
    """Refuse a name that a model cannot be registered by.

    Raises:
        ConfigError: it has a mark that the registry's URIs need, or is empty.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{flag} {name!r}: a registered model's name has no / : @ or quotes in it. For example charts."
        )


def refuse_missing_package(asked_by: str) -> None:
    """Refuse to go on without mlflow.

    Raises:
        ConfigError: names what is missing, and what to type.
    """
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"{asked_by}: the package {missing[0]} is not installed. Type: pip install 'vlm-lora[mlflow]' (or: pip "
            "install mlflow-skinny sqlalchemy alembic)."
        )
