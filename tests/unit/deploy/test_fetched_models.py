"""A registered model's files come from a server once, also where several processes ask at the same moment."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from vlm_lora.deploy.registry.found import find
from vlm_lora.deploy.registry.store import Store


def store(downloads: list[str], root: Path, monkeypatch: pytest.MonkeyPatch, *, faster: bool) -> Store:
    """Return a store of one model whose files are on a server; with `faster`, another process has them first."""

    def download_artifacts(*, artifact_uri: str, dst_path: str, tracking_uri: str) -> str:
        downloads.append(artifact_uri)
        held = Path(dst_path) / "model"
        held.mkdir()
        (held / "weights").write_text("ours")
        if faster:
            folder = Path(dst_path)
            other = folder.with_name(folder.name.removeprefix(".").rpartition(".")[0])
            other.mkdir()
            (other / "weights").write_text("theirs")
        return str(held)

    module: Any = ModuleType("mlflow.artifacts")
    module.download_artifacts = download_artifacts
    monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.artifacts", module)
    monkeypatch.setenv("XDG_DATA_HOME", str(root))
    client = SimpleNamespace(
        search_model_versions=lambda _: [SimpleNamespace(version="3")],
        get_model_version_download_uri=lambda *_: "mlflow-artifacts:/1/2/artifacts/model",
    )
    return Store(uri="http://127.0.0.1:5000", client=client, artifacts=None)


@pytest.mark.parametrize(("faster", "content"), [(False, "ours"), (True, "theirs")])
def test_files_are_fetched_once_and_nothing_else_is_left(
    faster: bool, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads: list[str] = []
    held = store(downloads, tmp_path, monkeypatch, faster=faster)
    folder = find("models:/mine/3", held)
    assert (folder / "weights").read_text() == content
    assert find("models:/mine/latest", held) == folder
    assert len(downloads) == 1
    assert list(folder.parent.iterdir()) == [folder]


def test_another_version_of_the_same_number_is_fetched_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was set up again at the same place counts from 1 again; its runs are others."""
    downloads: list[str] = []
    held = store(downloads, tmp_path, monkeypatch, faster=False)
    folder = find("models:/mine/3", held)
    held.client.get_model_version_download_uri = lambda *_: "mlflow-artifacts:/1/7/artifacts/model"
    assert find("models:/mine/3", held) != folder
    assert downloads == ["mlflow-artifacts:/1/2/artifacts/model", "mlflow-artifacts:/1/7/artifacts/model"]
