"""`vlm-lora register`: a run's model in MLflow's registry, with its settings, figures, data report and page."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_lora.config.sections.registered_names import check_new_name
from vlm_lora.config.whole_files import read_json
from vlm_lora.deploy.push import files_of, local_base, refuse_other_than_model
from vlm_lora.deploy.registry.store import Store, explained, open_store
from vlm_lora.errors import ModelError
from vlm_lora.model.folder_faults import ADAPTER_FILE, read_settings, refuse_damage
from vlm_lora.model.manifest import NAME, read_manifest, refuse_changed
from vlm_lora.training.checkpoints.contents import STATE_FILE
from vlm_lora.training.identity.secrets import is_secret, masked

MERGE_REPORT = "merge_report.json"
PLACE = "model"
"""Where a model's files lie among the artifacts of its MLflow run."""
_LONGEST = 6000
"""Characters of a setting, as MLflow takes them."""
_BATCH = 100
"""Settings in one request; of figures ten times as many."""


@dataclass(frozen=True, kw_only=True)
class Registered:
    """What was registered, and where."""

    name: str
    version: str
    model: str
    """`models:/NAME/VERSION`, which ask, eval and merge take."""
    kind: str
    """adapter, merged model or whole model."""
    base: str | None
    """What an adapter needs, a Hub id or a folder; None for a model that is whole."""
    store: str
    run_id: str
    """Of the MLflow run with settings, figures and files."""
    files: int
    folder: str


def register(folder: Path, name: str, tracking_uri: str | None, *, asked_by: str = "vlm-lora register") -> Registered:
    """Copy a folder's model into the store and register it as the next version of a name.

    Args:
        folder: a run's, one of its checkpoints, or a merged model's.
        name: of the registered model, which is made where it is not there.
        tracking_uri: the store; by default as `store.store_uri`.
        asked_by: how messages begin.

    Raises:
        ConfigError: no model in the folder, the name cannot be one, the package is missing, or the store refuses.
        ModelError: the folder is damaged, or its base is gone.
    """
    check_new_name(asked_by, name)
    refuse_other_than_model(folder, f"{asked_by}: ")
    store = open_store(tracking_uri, asked_by)
    refuse_damage(folder)
    for weights in (True, False):
        refuse_changed(folder, accept=False, weights=weights)
    kind, base = kind_of(folder)
    again = shlex.join(
        ["vlm-lora", "register", str(folder), name, *(["--tracking_uri", tracking_uri] if tracking_uri else [])]
    )
    after = f"Nothing is lost: all of it is in {folder}. To register it again: {again}"
    with explained(f"{asked_by}: the store {store.uri}", after=after):
        return _registered(folder, name, store, kind, base)


def kind_of(folder: Path) -> tuple[str, str | None]:
    """Return what a folder holds, and the base that it needs.

    Raises:
        ModelError: the base is a folder that is gone.
    """
    if not (folder / ADAPTER_FILE).is_file():
        return ("merged model" if (folder / MERGE_REPORT).is_file() else "whole model"), None
    base = str(read_settings(folder / ADAPTER_FILE).get("base_model_name_or_path") or "")
    if local_base(folder) and not Path(base).is_dir():
        raise ModelError(
            f"{folder}: the base model of this adapter is gone: {base} is not there. Put it back, or name another "
            f"place of it as base_model_name_or_path in {ADAPTER_FILE}."
        )
    return "adapter", base


def _registered(folder: Path, name: str, store: Store, kind: str, base: str | None) -> Registered:
    tags = {"vlm_lora.kind": kind, "vlm_lora.folder": str(folder.resolve())}
    tags |= {"vlm_lora.base": base} if base else {}
    client = store.client
    made = client.create_run(store.experiment(), run_name=folder.resolve().name, tags=tags)
    run_id = made.info.run_id
    try:
        _log_settings(client, run_id, folder)
        _log_figures(client, run_id, folder)
        names = model_files(folder)
        for file in names:
            parent = Path(file).parent.as_posix()
            client.log_artifact(run_id, str(folder / file), PLACE if parent == "." else f"{PLACE}/{parent}")
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        source = f"{made.info.artifact_uri}/{PLACE}"
        version = client.create_model_version(name, source, run_id=run_id, tags=tags)
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)
    return Registered(
        name=name,
        version=str(version.version),
        model=f"models:/{name}/{version.version}",
        kind=kind,
        base=base,
        store=store.uri,
        run_id=run_id,
        files=len(names),
        folder=str(folder),
    )


def model_files(folder: Path) -> list[str]:
    """Return what of a folder is registered: what is pushed, rows and pages too, and a manifest that fits it."""
    names, _ = files_of(folder, with_rows=True)
    manifest = read_manifest(folder / NAME) if (folder / NAME).is_file() else None
    fits = manifest is not None and not isinstance(manifest, str) and set(manifest.files) <= set(names)
    return [*names, NAME] if fits else names


def _log_settings(client: Any, run_id: str, folder: Path) -> None:
    from mlflow.entities import Param

    settings: Mapping[str, Any] = read_json(folder / "run.json").get("settings") or {}  # defaults included
    said = {
        name: masked(value if isinstance(value, str) else json.dumps(value, default=str))[:_LONGEST]
        for name, value in settings.items()
        if value not in (None, "", [], {}) and not is_secret(name)
    }
    entries = [Param(name, value) for name, value in said.items()]
    for begin in range(0, len(entries), _BATCH):
        client.log_batch(run_id, params=entries[begin : begin + _BATCH])


def _log_figures(client: Any, run_id: str, folder: Path) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    entries = [Metric(name, value, now, step) for name, value, step in figures_of(folder)]
    for begin in range(0, len(entries), 10 * _BATCH):
        client.log_batch(run_id, metrics=entries[begin : begin + 10 * _BATCH])


def figures_of(folder: Path) -> Iterator[tuple[str, float, int]]:
    """Yield a run's figures as name, value and step: its log in order, then its results, so that these count last."""
    state = read_json(folder / STATE_FILE)
    for entry in state.get("log_history") or ():
        yield from _numbers(entry, int(entry.get("step") or 0))
    yield from _numbers(read_json(folder / "all_results.json"), int(state.get("global_step") or 0))


def _numbers(entry: Mapping[str, Any], step: int) -> Iterator[tuple[str, float, int]]:
    for name, value in entry.items():
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield name, float(value), step
