"""Which MLflow store is used, and its client, opened with one message for each fault. mlflow is imported here alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_lora.config.sections.registered_names import refuse_missing_package
from vlm_lora.errors import ConfigError
from vlm_lora.model.loading_errors import first_line

VARIABLE = "MLFLOW_TRACKING_URI"
EXPERIMENT = "vlm-lora"
SQLITE = "sqlite:///"
_LIBRARIES = ("mlflow", "sqlalchemy", "alembic", "requests", "urllib3", "sqlite3")
"""Packages whose errors are the store's; not all of them are OSErrors."""
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nothing is told to anybody else
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # by default an absent server is found out after minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


@dataclass(frozen=True, kw_only=True)
class Store:
    """An open MLflow store."""

    uri: str
    client: Any
    """mlflow's `MlflowClient`."""
    artifacts: str | None
    """Where files of a new experiment go; None where the server says."""

    def experiment(self) -> str:
        """Return the id of the experiment that runs are kept in, which is made where it is missing."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        found = self.client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self.client.create_experiment(name, self.artifacts))


def data_folder() -> Path:
    """Return where a user's own store is: `$XDG_DATA_HOME/vlm-lora`, else `~/.local/share/vlm-lora`."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".local" / "share").absolute() / "vlm-lora"


def default_uri() -> str:
    """Return the store where none is named: a file of the user's, so that names are found from every folder."""
    return f"{SQLITE}{data_folder() / 'mlflow.db'}"


def store_uri(given: str | None) -> str:
    """Return the store's URI: the one given, else that of the environment, else the user's own file."""
    return given or os.environ.get(VARIABLE) or default_uri()


def open_store(given: str | None, asked_by: str) -> Store:
    """Open the store and ask it something, so that one that does not answer is found out.

    Args:
        given: `--tracking_uri`.
        asked_by: how messages begin.

    Raises:
        ConfigError: the package is missing, or the store does not answer.
    """
    refuse_missing_package(asked_by)
    uri = store_uri(given)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    artifacts = None
    with explained(f"{asked_by}: the store {uri}"):
        if uri.startswith(SQLITE):
            file = Path(uri.removeprefix(SQLITE)).absolute()
            file.parent.mkdir(parents=True, exist_ok=True)
            artifacts = (file.parent / f"{file.stem}-artifacts").as_uri()
        client = _client(uri)
        client.search_registered_models(max_results=1)
    return Store(uri=uri, client=client, artifacts=artifacts)


def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def explained(what: str, *, after: str = "") -> Iterator[None]:
    """Turn what a store refuses inside, or no answer, into one message.

    Raises:
        ConfigError: begins with `what` and ends with `after`.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _LIBRARIES:
            raise
        more = f" {after}" if after else f" Type another --tracking_uri, or set {VARIABLE}."
        raise ConfigError(f"{what} cannot be used ({first_line(error)}).{more}") from error
