"""A machine without Gaudi's software: asking for it is one clear message, and never another device."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from support.datasets import write_chartqa_folder
from support.runs import script_flags
from support.stacks import MAIN, SPAWN, run_words
from vlm_lora.cli.main import main, run_script
from vlm_lora_habana import HabanaBackend

MISSING = ("habana_frameworks", "optimum-habana", "hl-smi")


def test_use_habana_says_what_is_missing(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    data = write_chartqa_folder(tmp_path / "ChartQA", train=2, val=1, test=1, seed=0)
    flags = (
        f"run_lora_vlm.py --model_name_or_path {model_folder('gemma3')} --dataset_name {data} --do_train "
        f"--output_dir {tmp_path}/out --use_habana --use_lazy_mode --gaudi_config_name Habana/gpt2"
    )
    done = run_words(flags.split(), python=MAIN, variables={})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for missing in MISSING:
        assert missing in done.stderr
    assert not (tmp_path / "out").exists()


def test_in_process_too(
    model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = script_flags(
        model_folder("gemma3"), tmp_path, tmp_path / "out", do_train=True, use_habana=True, use_cpu=False
    )
    assert run_script(flags) == 1
    message = capsys.readouterr().err
    for missing in MISSING:
        assert missing in message


def test_gaudi_spawn_says_what_is_missing() -> None:
    done = run_words([SPAWN, "--world_size", "2", "run_lora_vlm.py"], python=MAIN, variables={})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for missing in MISSING:
        assert missing in done.stderr


def test_the_adapter_asks_for_no_variables_and_has_no_facts() -> None:
    from vlm_lora.config.run_config import RunConfig

    assert HabanaBackend().environment(RunConfig(backend="habana")) == {}
    assert HabanaBackend().facts() == {}


def test_a_run_on_gaudi_is_planned_without_it(
    model_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "--model_name_or_path", str(model_folder("llava")), "--max_length", "256", "--json"]
    vendor = ["--use_habana", "--use_lazy_mode", "--gaudi_config_name", "Habana/gpt2", "--device", "gaudi2"]
    capsys.readouterr()  # of building the model, if this test is the first to need it
    assert main([*words, *vendor]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [device["device"] for device in report["devices"]] == ["Gaudi2"]
    assert report["choice"]["optimizer"] == "adamw_torch", "the vendor's default"
    assert main([*words, "--device", "gaudi2", "--optim", "adamw_torch"]) == 0
    assert json.loads(capsys.readouterr().out)["devices"] == report["devices"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--use_habana"], "this machine has none of its devices. Type which to plan for: --device Gaudi2 or"),
        (["--use_habana", "--device", "gaudi2", "--use_lazy_mod"], "--use_lazy_mod is not a known key"),
        (
            ["--use_lazy_mode", "--device", "gaudi2"],
            "--use_lazy_mode is for the gaudi and habana backends: add --use_habana",
        ),
    ],
)
def test_a_wrong_plan_for_gaudi_is_one_message(
    flags: list[str], said: str, model_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "--model_name_or_path", str(model_folder("llava")), "--max_length", "256"]
    assert main([*words, *flags]) == 1
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("error: ") == 1
    assert shown.out == ""
