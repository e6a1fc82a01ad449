"""A stand-in for an MLflow store: the calls of its client that the project makes, over a folder."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class StandInStore:
    """What was registered, with settings, figures and files; `make check-registry` asks the real one the same."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.params: dict[str, str] = {}
        self.metrics: list[tuple[str, float, int]] = []
        self.versions: list[SimpleNamespace] = []
        self.ended: list[str] = []
        self.refuses: Callable[[], None] = lambda: None
        """Called before a version is made."""

    def search_registered_models(self, filter_string: str = "", max_results: int = 100) -> list[Any]:
        names = dict.fromkeys(one.name for one in self.versions)
        return [SimpleNamespace(name=name) for name in names if filter_string in ("", f"name = '{name}'")]

    def search_model_versions(self, filter_string: str) -> list[Any]:
        return [one for one in self.versions if filter_string == f"name = '{one.name}'"]

    def get_model_version_download_uri(self, name: str, version: str) -> str:
        return next(one.source for one in self.versions if (one.name, one.version) == (name, version))

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str, artifact_location: str | None) -> str:
        return "1"

    def create_run(self, experiment_id: str, run_name: str, tags: dict[str, str]) -> Any:
        number = len(list(self.root.iterdir()))
        (self.root / str(number)).mkdir()
        return SimpleNamespace(info=SimpleNamespace(run_id=str(number), artifact_uri=str(self.root / str(number))))

    def log_batch(self, run_id: str, params: Any = (), metrics: Any = ()) -> None:
        self.params |= dict(params)
        self.metrics += [(name, value, step) for name, value, _, step in metrics]

    def log_artifact(self, run_id: str, local_path: str, artifact_path: str) -> None:
        place = self.root / run_id / artifact_path
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(local_path, place)

    def create_registered_model(self, name: str) -> None:
        """A model without a version is not listed here."""

    def create_model_version(self, name: str, source: str, run_id: str, tags: dict[str, str]) -> Any:
        self.refuses()
        version = str(1 + len(self.search_model_versions(f"name = '{name}'")))
        made = SimpleNamespace(name=name, version=version, source=source, tags=tags, aliases=["best"])
        for one in self.search_model_versions(f"name = '{name}'"):
            one.aliases = []
        self.versions.append(made)
        return made

    def set_terminated(self, run_id: str, status: str = "FINISHED") -> None:
        self.ended.append(status)


def stand_in_store(root: Path, monkeypatch: pytest.MonkeyPatch) -> StandInStore:
    """Have the project find mlflow installed, and this in place of any store."""
    store = StandInStore(root)
    root.mkdir()
    entities = ModuleType("mlflow.entities")
    for name in ("Param", "Metric"):
        setattr(entities, name, lambda *values: values)
    monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setattr("vlm_lora.config.sections.registered_names.find_spec", lambda name: name)
    monkeypatch.setattr("vlm_lora.deploy.registry.store._client", lambda uri: store)
    monkeypatch.setenv("XDG_DATA_HOME", str(root.parent / "share"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return store
