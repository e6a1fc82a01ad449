"""The settings that `--from_run` takes from a record, before anything else of the run is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlm_lora.config.resolution import to_mapping
from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.sources import from_settings, parse
from vlm_lora.errors import ConfigError

CONFIG = {"lora_rank": 8, "seed": 7, "dataset_name": "data/a.jsonl + org/set", "model_name_or_path": "org/model"}


def record(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"cache_vision_features": "off"}
    content = {"format": 1, "config": {**CONFIG, **config}, "settings": settings, "directory": str(folder.parent)}
    (folder / "run.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def repeated(*words: str) -> RunConfig:
    return parse(["--from_run", *words], environ={})


def test_what_is_typed_wins_and_folders_are_new(tmp_path: Path) -> None:
    folder = record(
        tmp_path / "out",
        output_dir="out",
        resume_from_checkpoint="true",
        overwrite_output_dir=True,
        allow_changed=["seed"],
        push_to_hub=True,
        from_run="earlier",
    )
    run = repeated(str(folder), "--lora_r", "4")
    assert (run.tuning.lora_rank, run.from_run) == (4, str(folder / "run.json"))
    assert run.raw == {"seed": 7, "output_dir": f"{folder}-repeat"}
    assert (run.overwrite_output_dir, run.allow_changed) == (False, ())
    assert repeated(str(folder / "run.json"), "--output_dir", "new").raw["output_dir"] == "new"
    assert repeated(str(record(folder / "checkpoint-2"))).raw["output_dir"] == f"{folder}-repeat"
    assert from_settings({"from_run": folder, "seed": 8}, environ={}).raw["seed"] == 8
    assert "from_run" not in to_mapping(run, {})
    assert run.batching.cache_vision_features == "auto"
    settled = record(tmp_path / "other", cache_vision_features="auto")
    assert repeated(str(settled)).batching.cache_vision_features == "off", "what became of it"


def test_places_are_those_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    folder = record(tmp_path / "out", validation_name="data/{0..3}.tar,data/b.tar")
    monkeypatch.chdir(tmp_path)
    assert repeated(str(folder)).data.dataset_name == "data/a.jsonl + org/set", "as it was typed"
    monkeypatch.chdir(folder)
    run = repeated(str(folder))
    assert run.data.dataset_name == f"{tmp_path}/data/a.jsonl + org/set"
    assert run.data.validation_name == f"{tmp_path}/data/{{0..3}}.tar,{tmp_path}/data/b.tar"
    assert run.model.model_name_or_path == "org/model"


def test_what_is_refused(tmp_path: Path) -> None:
    folder = record(tmp_path / "out", dataset_name="https://***@host/a.jsonl", run_name="a ***")
    with pytest.raises(ConfigError, match=r"the record keeps no secrets.*: --dataset_name, --run_name\. Add them"):
        repeated(str(folder))
    assert repeated(str(folder), "--dataset_name", "a", "--run_name", "b").data.dataset_name == "a"
    with pytest.raises(ConfigError, match="--from_run: needs"):
        repeated()
    with pytest.raises(ConfigError, match=r"holds no run\.json, which training writes"):
        repeated(str(tmp_path / "none"))
    (tmp_path / "run.yaml").write_text(f"from_run: {folder}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot name another"):
        parse(["--config", str(tmp_path / "run.yaml")], environ={})
    (tmp_path / "run.yaml").write_text("seed: 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="contradict each other"):
        repeated(str(folder), "--config", str(tmp_path / "run.yaml"))
    (folder / "run.json").write_text("[", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be read as the record"):
        repeated(str(folder))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"format": 99, "config": {}, "settings": {}, "versions": {"vlm_lora": "9.1"}},
            r"the format 99.*wrote it \(9\.1",
        ),
        ({"config": {}, "settings": {}}, "the format null, and this version reads 1"),
        ({"format": 1, "settings": {}}, "its `config` is missing, so there is nothing to repeat"),
        ({"format": 1, "config": {}, "settings": [1]}, "its `settings` is no mapping of settings"),
        ([1], "is no record of a run, which is one JSON object"),
    ],
)
def test_a_record_of_another_kind_is_named(content: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        repeated(str(tmp_path))
