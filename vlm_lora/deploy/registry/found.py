"""A registered model by its name: which folder it is, or is fetched into."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.sections.registered_names import is_registered, parts_of
from vlm_lora.deploy.registry.store import Store, data_folder, explained, open_store
from vlm_lora.errors import ModelError

logger = logging.getLogger(__name__)


def with_registered(run: RunConfig) -> RunConfig:
    """Return the run with a folder in place of `models:/NAME/VERSION`; any other name stays.

    Raises:
        ConfigError: the name is written otherwise, the package is missing, or the store does not answer.
        ModelError: there is no such model or version, or its files are gone.
    """
    name = run.model.model_name_or_path
    if name is None or not is_registered(name):
        return run
    folder = find(name, open_store(run.tracking_uri, name))
    return replace(run, model=replace(run.model, model_name_or_path=str(folder)))


def find(name: str, store: Store) -> Path:
    """Return the folder of a registered model's files; one on a server is fetched once.

    Raises:
        ModelError: there is no such model or version, or its files are gone.
    """
    plain, _, _ = parts_of(name)
    with explained(f"{name}: the store {store.uri}"):
        versions = store.client.search_model_versions(f"name = '{plain}'")
        version = _version(name, versions, store)
        source = str(store.client.get_model_version_download_uri(plain, version))
    if source.startswith("file://"):
        source = source.removeprefix("file://")
    folder = Path(source) if source.startswith("/") else _fetched(name, plain, version, source, store)
    if not folder.is_dir():
        raise ModelError(f"{name}: registered in {store.uri}, but its files are gone: {folder} is not there.")
    logger.info("%s is version %s, in %s.", name, version, folder)
    return folder


def _version(name: str, versions: Any, store: Store) -> str:
    """Return the number of the version that a name means."""
    plain, version, alias = parts_of(name)
    numbers = sorted((int(one.version) for one in versions), reverse=True)
    if alias is not None:
        found = {alias: one for one in versions for alias in getattr(one, "aliases", ())}
        if alias not in found:
            known = ", ".join(sorted(found)) or "none"
            raise ModelError(f"{name}: {plain} has no alias {alias} in {store.uri}. It has: {known}.")
        return str(found[alias].version)
    if version == "latest" and numbers:
        return str(numbers[0])
    if version is not None and version in map(str, numbers):
        return version
    if numbers:
        raise ModelError(f"{name}: {plain} has the versions {', '.join(map(str, numbers))} in {store.uri}.")
    with explained(f"{name}: the store {store.uri}"):
        names = sorted(one.name for one in store.client.search_registered_models(max_results=20))
    known = f"There are: {', '.join(names)}." if names else "Nothing is registered there."
    raise ModelError(
        f"{name}: no such model in {store.uri}. {known} Another store: --tracking_uri, or MLFLOW_TRACKING_URI."
    )


def _fetched(name: str, plain: str, version: str, source: str, store: Store) -> Path:
    """Fetch a version's files from a server, once: at one source, which no other version has, they never change."""
    mark = hashlib.sha256(source.encode()).hexdigest()[:12]
    place = data_folder() / "fetched" / quote(store.uri, safe="") / f"{plain}-{version}-{mark}"
    if place.is_dir():
        return place
    logger.warning("%s is fetched from %s into %s.", name, store.uri, place)
    place.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own: other processes of the same run may fetch the same version at this moment.
    with TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent) as part:
        with explained(f"{name}: {source}"):
            from mlflow.artifacts import download_artifacts

            held = Path(download_artifacts(artifact_uri=source, dst_path=part, tracking_uri=store.uri))
        try:
            held.rename(place)
        except OSError:
            if not place.is_dir():  # or another process was faster
                raise
    return place
