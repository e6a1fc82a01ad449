"""Results of an evaluation have a folder per model and data, and nothing of another model is written over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from support.rows import write_uneven_rows
from vlm_lora.cli.main import main
from vlm_lora.config.run_config import DataConfig, ModelConfig, RunConfig
from vlm_lora.demo.run import run_demo
from vlm_lora.errors import ConfigError
from vlm_lora.evaluation.places import RECORD, RESULTS, TRAINED, refuse_other_results, with_own_folder


def evaluated(folder: Path, **settings: object) -> None:
    """Leave in `folder` what an evaluation leaves there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_text(yaml.safe_dump(settings), encoding="utf-8")
    (folder / RESULTS[0]).write_text("{}", encoding="utf-8")


def asked(model: object, data: object) -> RunConfig:
    return RunConfig(model=ModelConfig(model_name_or_path=str(model)), data=DataConfig(dataset_name=str(data)), raw={})


def chosen(run: RunConfig) -> str:
    return str(with_own_folder(run).raw["output_dir"])


def test_the_name_is_short_and_says_model_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert chosen(asked("google/gemma-3-4b-it", "HuggingFaceM4/ChartQA")) == "eval_results/gemma-3-4b-it-ChartQA"
    assert chosen(asked("/runs/a/checkpoint-40", "/data/my charts.jsonl")) == "eval_results/a-checkpoint-40-my_charts"
    held_out = asked("m", "train.jsonl")
    assert chosen(replace(held_out, data=replace(held_out.data, validation_name="v/val.jsonl"))) == "eval_results/m-val"


def test_models_of_one_name_get_two_folders_and_keep_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", logger="vlm_lora")
    first, second = asked("runs/a/out", "data"), asked("runs/b/out", "data")
    for run in (first, second):
        assert run.model.model_name_or_path is not None
        Path(run.model.model_name_or_path).mkdir(parents=True)
        evaluated(
            Path(chosen(run)),
            model_name_or_path=run.model.model_name_or_path,
            dataset_name="data",
            model_revision="main",
        )
    assert chosen(first) == "eval_results/out-data"
    assert "over those of an earlier evaluation of the same model and data" in caplog.text
    assert chosen(second).startswith("eval_results/out-data-")
    # The same folder by another name is the same model.
    assert chosen(asked(tmp_path / "runs" / "a" / "out", "data")) == chosen(first)
    assert chosen(asked("runs/a/out", "d/data")) not in (chosen(first), chosen(second))


def test_a_folder_that_was_named_is_not_written_over(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    evaluated(folder, model_name_or_path="m", dataset_name="data", model_revision="main")
    refuse_other_results(folder, asked("m", "data"))
    for other in (asked("n", "data"), asked("m", "charts")):
        with pytest.raises(ConfigError, match=r"holds the evaluation results of m on data; .*--overwrite_output_dir"):
            refuse_other_results(folder, other)
        refuse_other_results(folder, replace(other, overwrite_output_dir=True))
        refuse_other_results(tmp_path / "new", other)
    (folder / RECORD).unlink()
    with pytest.raises(ConfigError, match="results of an unknown model"):
        refuse_other_results(folder, asked("m", "data"))


def test_another_split_of_the_same_data_has_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = asked("m", "data")
    evaluated(Path(chosen(run)), model_name_or_path="m", dataset_name="data")
    assert chosen(run) == "eval_results/m-data"
    other = replace(run, data=replace(run.data, split_seed=7))
    assert chosen(other).startswith("eval_results/m-data-")
    with pytest.raises(ConfigError, match=r"those of m on data \(--split_seed 7\) would replace them"):
        refuse_other_results(Path("eval_results/m-data"), other)
    apart = replace(other, data=replace(other.data, validation_name="val"))
    evaluated(Path("v"), model_name_or_path="m", dataset_name="data", validation_name="val")
    refuse_other_results(Path("v"), apart)  # named rows are the same whatever a split would hold out


def test_a_training_folder_holds_the_results_of_what_it_trained(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    evaluated(folder, model_name_or_path="base", dataset_name="data")
    (folder / RECORD).rename(folder / TRAINED)
    refuse_other_results(folder, asked(folder, "data"))
    with pytest.raises(ConfigError, match="holds the evaluation results of"):
        refuse_other_results(folder, asked("base", "data"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], Path]) -> Path:
    """A working directory in which two models of one name were evaluated."""
    place = tmp_path_factory.mktemp("measured")
    data = write_uneven_rows(place / "data", rows=1, validation=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for parent in ("one", "two"):
            shutil.copytree(model_folder("qwen2_vl"), place / parent / "model")
            flags = ["--model_name_or_path", f"{parent}/model", "--dataset_name", str(data), "--use_cpu", "true"]
            assert main(["eval", *flags, "--predict_with_generate", "--max_new_tokens", "2"]) == 0
    return place


def test_eval_alone_keeps_both(measured: Path) -> None:
    folders = sorted((measured / "eval_results").iterdir())
    assert folders[0].name == "model-data"
    assert len(folders) == 2
    models = []
    for folder in folders:
        assert json.loads((folder / "eval_results.json").read_text(encoding="utf-8"))["eval_samples"] == 1
        assert (folder / "predictions.jsonl").is_file()
        models.append(yaml.safe_load((folder / RECORD).read_text(encoding="utf-8"))["model_name_or_path"])
    assert models == ["one/model", "two/model"]


def test_eval_into_the_results_of_another_model_is_refused_before_it_loads(
    measured: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(measured)
    flags = ["--model_name_or_path", "two/model", "--dataset_name", "data", "--use_cpu", "true"]
    assert main(["eval", *flags, "--output_dir", "eval_results/model-data"]) == 1
    assert "eval_results/model-data holds the evaluation results of" in capsys.readouterr().err


def test_pages_replace_pages_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "train.jsonl"
    rows.write_text("{}\n", encoding="utf-8")
    for verb in ("check", "preview"):
        assert main([verb, "--html", str(rows), "--model_name_or_path", "no/model", "--dataset_name", str(rows)]) == 1
        assert f"--html {rows} is a file already and no page" in capsys.readouterr().err
        page = tmp_path / "page.html"
        page.write_text("<!DOCTYPE html>\n", encoding="utf-8")
        assert main([verb, "--html", str(page), "--model_name_or_path", "./none", "--dataset_name", str(rows)]) == 1
        assert "no page" not in capsys.readouterr().err
    assert rows.read_text(encoding="utf-8") == "{}\n"


def test_the_demo_replaces_no_folder_of_others(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    with pytest.raises(ConfigError, match="adapter would be replaced"):
        run_demo(tmp_path)
