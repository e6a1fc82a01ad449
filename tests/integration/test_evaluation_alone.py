"""What trains nothing needs no engine: evaluation, questions and dry runs with a training run's own configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from support.rows import write_uneven_rows
from support.runs import run, script_flags
from vlm_lora.cli.main import main, run_script
from vlm_lora.config.repeated import find_record
from vlm_lora.config.run_config import RunConfig
from vlm_lora.errors import ConfigError
from vlm_lora.report.run_page.folder import read_run
from vlm_lora.training.inference_only import without_engine

LEFT_OUT = "--{} is left out, because nothing trains: each process holds the whole model"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], Path]) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    data = write_uneven_rows(folder / "data", rows=6, validation=2)
    run(model_folder("gemma3"), data, folder / "out", do_train=True, do_eval=True, max_steps=1, log_level="warning")
    return folder


@pytest.mark.parametrize(
    ("engine", "keys"),
    [
        ("deepspeed", {"deepspeed": "zero2"}),
        ("deepspeed", {"deepspeed_config": "zero1"}),
        ("fsdp", {"fsdp": True, "fsdp_transformer_layer_cls_to_wrap": "Gemma3DecoderLayer"}),
        ("", {}),
    ],
)
def test_eval_with_the_configuration_of_the_run(
    engine: str, keys: dict[str, object], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = yaml.safe_load((trained / "out" / "run_config.yaml").read_text(encoding="utf-8"))
    config = tmp_path / "run_config.yaml"
    config.write_text(yaml.safe_dump({**settings, **keys}), encoding="utf-8")
    words = ["--config", str(config), "--model_name_or_path", str(trained / "out"), "--output_dir", str(tmp_path / "e")]
    assert main(["eval", *words]) == 0
    said = capsys.readouterr().err
    assert (LEFT_OUT.format(engine) in said) is bool(engine)
    before, after = (
        json.loads((folder / "eval_results.json").read_text(encoding="utf-8"))["eval_perplexity"]
        for folder in (trained / "out", tmp_path / "e")
    )
    assert after == pytest.approx(before, rel=1e-6)


def test_the_script_with_do_eval_alone(
    trained: Path, model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"do_eval": True, "deepspeed": "zero2", "log_level": "warning"}
    words = script_flags(model_folder("gemma3"), trained / "data", tmp_path / "out", **flags)
    assert run_script(words) == 0
    assert LEFT_OUT.format("deepspeed") in capsys.readouterr().err


def test_a_question_and_a_dry_run(
    trained: Path, model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each runs in one process, so that stage 3 is of no use either."""
    flags = ["--model_name_or_path", str(model_folder("gemma3")), "--use_cpu", "true", "--deepspeed", "zero3"]
    assert main(["ask", *flags, "--max_new_tokens", "2", "--prompt", "What is this?"]) == 0
    assert LEFT_OUT.format("deepspeed") in capsys.readouterr().err
    rows = ["--dataset_name", str(trained / "data"), "--output_dir", str(tmp_path / "out")]
    assert main(["train", *flags, *rows, "--dry_run"]) == 0
    assert LEFT_OUT.format("deepspeed") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raw", "variables", "kept"),
    [
        ({"deepspeed": "zero3"}, {}, True),
        ({"deepspeed": "zero2"}, {}, False),
        ({}, {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, True),
        ({}, {"ACCELERATE_USE_DEEPSPEED": "true"}, False),
        ({}, {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "{zero3}"}, True),
        ({"fsdp": "full_shard", "fsdp_config": {"min_num_params": 1}}, {}, False),
        ({}, {"ACCELERATE_USE_FSDP": "1"}, False),
    ],
)
def test_stage_3_alone_is_kept(
    raw: dict[str, object], variables: dict[str, str], kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    zero3 = Path(__file__).parents[2] / "launchers" / "deepspeed" / "zero3.json"
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(zero3=zero3))
    given = RunConfig(raw={**raw, "seed": 1})
    found = without_engine(given, shared=True)
    assert (found.raw == given.raw) is (kept or not raw)
    asked = {name for name in variables if name.startswith("ACCELERATE_USE")}
    assert (asked <= set(os.environ)) is (kept or not asked)
    assert without_engine(given).raw == {"seed": 1}
    assert not asked & set(os.environ)


def test_rows_to_evaluate_need_no_rows_to_train_on(trained: Path, tmp_path: Path) -> None:
    """What the evaluation was is on record, next to the training's record where it goes into that one's folder."""
    record = (trained / "out" / "run.json").read_bytes()
    (rows,) = (trained / "data").glob("validation.jsonl")
    results = []
    for folder in (tmp_path / "e", trained / "out"):
        words = ["--model_name_or_path", str(trained / "out"), "--use_cpu", "--output_dir", str(folder)]
        more = ["--overwrite_output_dir"] if folder.parent == trained else []
        assert main(["eval", *words, "--validation_name", str(rows), *more]) == 0
        results.append(json.loads((folder / "eval_results.json").read_text(encoding="utf-8"))["eval_perplexity"])
        known = read_run(folder)
        assert known.effective["per_device_eval_batch_size"] == 8, "a default, of which eval_config.yaml says nothing"
    assert results[0] == results[1]
    assert list(read_run(tmp_path / "e").identity["data"]) == ["validation"]
    assert (trained / "out" / "run.json").read_bytes() == record
    with pytest.raises(ConfigError, match=r"holds no run\.json, which training writes"):
        find_record(str(tmp_path / "e"))
