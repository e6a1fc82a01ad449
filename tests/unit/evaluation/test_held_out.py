"""A trained model is measured on what its training held out; where it is not, that is said with counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.rows import write_split
from vlm_lora import configure
from vlm_lora.config.run_config import RunConfig
from vlm_lora.data.dataset import load_splits
from vlm_lora.errors import ConfigError
from vlm_lora.evaluation.held_out import warn_of_trained_rows, with_trained_split

ROWS, HELD = 20, 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for number, name in enumerate(("rows", "others")):
        write_split(folder, name, ROWS, seed=number)
    return folder


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="vlm_lora")


def trained(folder: Path, **settings: object) -> Path:
    """Leave in `folder` what a training's record says."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    (folder / "run_config.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
    return folder


def evaluation(model: Path, data: Path | str, **settings: Any) -> RunConfig:
    return with_trained_split(configure(model_name_or_path=model, dataset_name=data, **settings))


def sources(run: RunConfig) -> list[str]:
    splits = load_splits(run.data, need_train=False, need_validation=True)
    rows = splits.validation
    assert rows is not None
    warn_of_trained_rows(run, splits, {})
    return [str(rows.source(index)) for index in range(len(rows))]


def held_out(data: Path | str, **settings: Any) -> list[str]:
    """Return the rows that a training with these settings holds out."""
    rows = load_splits(configure(dataset_name=data, **settings).data, need_train=True, need_validation=True).validation
    assert rows is not None
    return [str(rows.source(index)) for index in range(len(rows))]


def test_the_rows_are_those_that_the_training_held_out(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, split = data / "rows.jsonl", {"validation_fraction": HELD / ROWS, "split_seed": 7}
    model = trained(tmp_path / "out", dataset_name=file, system_prompt="Be brief.", max_eval_samples=2, **split)
    run = evaluation(model, file)
    assert sources(run) == held_out(file, **split)
    assert sources(run) != sources(configure(dataset_name=file)), "the control: what the defaults hold out"
    assert run.data.system_prompt == "Be brief."
    assert run.data.max_eval_samples is None
    assert "--validation_fraction 0.3 --split_seed 7" in caplog.text
    assert "was trained on 1" not in caplog.text
    assert evaluation(model, data / "others.jsonl").data == configure(dataset_name=data / "others.jsonl").data


def test_what_is_typed_wins_and_rows_that_were_trained_on_are_counted(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = data / "rows.jsonl"
    model = trained(tmp_path / "out", dataset_name=file, validation_fraction=HELD / ROWS, split_seed=7)
    run = evaluation(model, file, validation_fraction=0.5)
    evaluated = sources(run)
    seen = set(evaluated) - set(held_out(file, validation_fraction=HELD / ROWS, split_seed=7))
    assert len(evaluated) == ROWS / 2
    assert f"was trained on {len(seen)} of the 10 rows that are evaluated" in caplog.text
    assert "leave --validation_fraction out" in caplog.text
    caplog.clear()
    sources(evaluation(model, file, validation_name=file))
    assert f"was trained on {ROWS - HELD} of the {ROWS} rows" in caplog.text
    caplog.clear()
    sources(evaluation(model, data / "others.jsonl", validation_name=file))
    assert f"was trained on {ROWS - HELD} of the {ROWS} rows" in caplog.text
    caplog.clear()
    sources(evaluation(model, file, validation_name=data / "others.jsonl"))
    assert "was trained on 1" not in caplog.text, "the control: rows of another file"


def test_a_mixture_and_one_of_its_data_sets(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    both, split = f"{data / 'rows.jsonl'} + {data / 'others.jsonl'}", {"validation_fraction": 0.2, "split_seed": 3}
    model = trained(tmp_path / "out", dataset_name=both, dataset_weights=[1.0, 0.5], **split)
    assert sources(evaluation(model, both)) == held_out(both, **split)
    assert sources(evaluation(model, data / "others.jsonl")) == held_out(data / "others.jsonl", **split)
    assert "rows that are evaluated (" not in caplog.text


def test_a_record_with_relative_paths_and_a_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").symlink_to(data)
    file = data / "rows.jsonl"
    split = {"validation_fraction": 0.4, "split_seed": 9}
    model = trained(tmp_path / "out", dataset_name=f"./{data.name}/rows.jsonl", image_root="gone", **split)
    run = evaluation(model, file)
    assert (run.data.split_seed, run.data.image_root) == (9, None)
    checkpoint = tmp_path / "other" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    settings = {"settings": {"dataset_name": str(file), **split}}
    (checkpoint / "run_settings.json").write_text(json.dumps(settings), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert evaluation(checkpoint, "data/rows.jsonl").data.split_seed == 9


def test_a_training_with_data_of_its_own_to_measure_on(data: Path, tmp_path: Path) -> None:
    file, others = data / "rows.jsonl", data / "others.jsonl"
    model = trained(tmp_path / "out", dataset_name=file, validation_name=others, streaming=True)
    run = evaluation(model, file)
    assert run.data.validation_name == str(others)
    assert not run.data.streaming
    assert evaluation(model, file, split_seed=1).data.validation_name is None
    trained(tmp_path / "out", dataset_name=file, validation_name="moved/away.jsonl")
    with pytest.raises(ConfigError, match=r"was measured on --validation_name moved/away.jsonl in its training"):
        evaluation(model, file)


def test_a_stream_was_trained_on_whole(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = data / "rows.jsonl"
    sources(evaluation(trained(tmp_path / "out", dataset_name=file, streaming=True), file))
    assert "was trained on 1 of the 1 row that is evaluated" in caplog.text


def test_data_that_grew_are_divided_otherwise(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = data / "rows.jsonl"
    model = trained(tmp_path / "out", dataset_name=file)
    splits = {"train": {"rows": ROWS - 2}, "validation": {"rows": 1}}
    (model / "data_report.json").write_text(json.dumps({"splits": splits}), encoding="utf-8")
    sources(evaluation(model, file))
    assert f"has {ROWS} rows, and had {ROWS - 1} when" in caplog.text
    caplog.clear()
    splits["train"]["rows"] += 1
    (model / "data_report.json").write_text(json.dumps({"splits": splits}), encoding="utf-8")
    sources(evaluation(model, file))
    assert "and had" not in caplog.text
