"""Flags and files become a RunConfig: spellings, precedence, types, and messages that say what to type."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vlm_lora.config.fields import flatten
from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.sources import parse
from vlm_lora.errors import ConfigError


def flags(*words: str, **environ: str) -> RunConfig:
    return parse(words, environ=environ)


def settings(run: RunConfig) -> dict[str, Any]:
    return {**flatten(run), **run.raw}


def refused(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        flags(*words)
    return str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ("--lora_rank", "8"),
        ("--lora-rank", "8"),
        ("--lora_rank=8",),
        ("--lora-rank=8",),
        ("--bf16", "--lora_rank", "8", "--fp16", "no"),
    ],
)
def test_every_spelling_of_a_flag(words: tuple[str, ...]) -> None:
    assert flags(*words).tuning.lora_rank == 8


@pytest.mark.parametrize("word", ["true", "True", "yes", "1", "on", "t"])
def test_true_words(word: str) -> None:
    assert flags("--use_dora", word).tuning.use_dora is True


@pytest.mark.parametrize("word", ["false", "False", "no", "0", "off", "n"])
def test_false_words_are_not_true(word: str) -> None:
    assert flags("--freeze_vision", word).tuning.freeze_vision is False


@pytest.mark.parametrize(("words", "value"), [(("--use_rslora",), True), (("--no_use_rslora",), False)])
def test_bare_switch(words: tuple[str, ...], value: bool) -> None:
    assert flags(*words).tuning.use_rslora is value


@pytest.mark.parametrize("word", ["--no_freeze_vision", "--no-freeze-vision", "--no_freeze-vision"])
def test_no_form(word: str) -> None:
    assert flags(word).tuning.freeze_vision is False


@pytest.mark.parametrize(
    ("word", "meant"), [("true", "on"), ("False", "off"), ("1", "on"), ("on", "on"), ("auto", "auto")]
)
def test_on_and_off_may_be_said_as_true_and_false(word: str, meant: str) -> None:
    batching = flags("--image_cache", word, "--cache_vision_features", word).batching
    assert (batching.image_cache, batching.cache_vision_features) == (meant, meant)
    with pytest.raises(ConfigError, match="must be one of auto, on, off"):
        flags("--cache_vision_features", "maybe")


def test_keys_that_are_not_ours_wait_as_text() -> None:
    run = flags("--learning_rate", "1e-4", "--bf16", "--no_tf32", "--report_to", "a", "b", "--max_steps", "-1")
    assert run.raw == {
        "learning_rate": "1e-4",
        "bf16": True,
        "tf32": False,
        "report_to": ["a", "b"],
        "max_steps": "-1",
    }


def test_a_value_may_start_with_dashes_or_hold_an_equals_sign() -> None:
    assert flags("--system_prompt=--be=short").data.system_prompt == "--be=short"
    assert flags("--system_prompt", "- be short").data.system_prompt == "- be short"


def test_a_list_flag_takes_several_values() -> None:
    assert flags("--lora_targets", "q_proj", "v_proj", "--bf16").tuning.lora_targets == "q_proj,v_proj"


def test_none_takes_a_number_back(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("max_train_samples: 5\n")
    assert flags("--config", str(file)).data.max_train_samples == 5
    assert flags("--config", str(file), "--max_train_samples", "none").data.max_train_samples is None


@pytest.mark.parametrize(
    ("words", "ours", "raw"),
    [
        (("--debug",), True, {}),
        (("--debug", "true"), True, {}),
        (("--debug", "false"), False, {}),
        (("--no_debug",), False, {}),
        (("--debug", "underflow_overflow"), False, {"debug": "underflow_overflow"}),
    ],
)
def test_debug_is_ours_or_the_backends(words: tuple[str, ...], ours: bool, raw: dict[str, str]) -> None:
    run = flags(*words)
    assert run.debug is ours
    assert run.raw == raw


# Files


@pytest.mark.parametrize("style", ["flag", "equals", "positional", "environment", "other_environment"])
@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_a_file_is_found_in_each_way(tmp_path: Path, style: str, suffix: str) -> None:
    file = tmp_path / f"run{suffix}"
    file.write_text(json.dumps({"lora-rank": 4, "learning_rate": 0.1, "gradient_checkpointing_kwargs": {"a": False}}))
    words = {"flag": ["--config", str(file)], "equals": [f"--config={file}"], "positional": [str(file)]}.get(style, [])
    environ = {
        "environment": {"VLM_LORA_CONFIG": str(file)},
        "other_environment": {"SFT_TRAINER_CONFIG_JSON_PATH": str(file)},
    }.get(style, {})
    run = parse([*words, "--bf16"], environ=environ)
    assert run.tuning.lora_rank == 4
    assert run.raw == {"learning_rate": 0.1, "gradient_checkpointing_kwargs": {"a": False}, "bf16": True}


def test_flags_win_over_the_file_and_its_aliases(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("r: 4\nnum_epochs: 2\nseed: 7\n")
    run = flags("--config", str(file), "--lora_r", "8", "--num_train_epochs", "3")
    assert run.tuning.lora_rank == 8
    assert run.raw == {"num_train_epochs": "3", "seed": 7}


def test_the_file_named_by_flag_wins_over_the_environment(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(f"output_dir: {name}\n")
    run = flags("--config", str(tmp_path / "one.yaml"), VLM_LORA_CONFIG=str(tmp_path / "two.yaml"))
    assert run.raw == {"output_dir": "one"}


def test_yaml_numbers_without_a_dot_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("learning_rate: 1e-4\nlora_alpha: 1E1\nrun_name: '1e-4'\nlr_scheduler_kwargs: {min_lr: 1e-5}\n")
    run = flags(str(file))
    assert run.tuning.lora_alpha == 10.0
    assert run.raw == {"learning_rate": 1e-4, "run_name": "1e-4", "lr_scheduler_kwargs": {"min_lr": 1e-5}}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.yaml", "seed: 1\nlora_rank: [1\n", "line 3"),
        ("run.yaml", "seed: 1\n\tlora_rank: 1\n", "line 2"),
        (
            "run.yaml",
            "seed: 1\nbf16: true\nseed: 2\n",
            "line 3, column 1: 'seed' is given twice (first in line 1)",
        ),
        ("run.json", '{"seed": 1,\n "r": }', "line 2, column 7"),
        ("run.json", '{"seed": 1, "seed": 2}', "'seed' is given twice"),
        ("run.yaml", "", "is empty"),
        ("run.yaml", "- seed\n", "holds a list"),
        ("run.json", "3", "holds a int"),
        ("run.yaml", "1: 2\n", "the key 1 is not text"),
        ("run.yaml", "tuning: {lora_rank: 8}\n", "'tuning' is not a key. The keys are flat"),
        ("run.yaml", "config: other.yaml\n", "cannot name another"),
        ("run.yaml", "lora_rank: many\n", "lora_rank: many"),
        ("run.yaml", "lora_rank: null\n", "must be a whole number"),
        ("run.yaml", "model_revision: 2024\n", "put quotes around it"),
        ("run.toml", "seed = 1", "ends in .yaml, .yml, .json"),
    ],
)
def test_a_bad_file_is_named_with_the_place(tmp_path: Path, name: str, content: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(content)
    text = refused("--config", str(file))
    assert message in text
    assert str(file) in text


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    assert "no such configuration file" in refused("--config", str(tmp_path / "missing.yaml"))
    assert "no such configuration file" in refused(str(tmp_path / "missing.json"))
    (tmp_path / "folder.yaml").mkdir()
    assert "cannot be read" in refused("--config", str(tmp_path / "folder.yaml"))
    (tmp_path / "latin.yaml").write_bytes(b"run_name: caf\xe9\n")
    assert "not UTF-8" in refused("--config", str(tmp_path / "latin.yaml"))


# Refusals


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--lora_rank", "many"), ("--lora_rank many", "a whole number")),
        (("--lora-rank", "1.5"), ("--lora_rank 1.5", "a whole number")),
        (("--lora_rank", "8", "9"), ("--lora_rank 8 9", "a whole number")),
        (("--lora_alpha", "big"), ("--lora_alpha big", "a number")),
        (("--lora_alpha", "nan"), ("--lora_alpha nan", "a number")),
        (("--lora_alpha", "inf"), ("--lora_alpha inf", "finite")),
        (("--use_dora", "maybe"), ("--use_dora maybe", "true or false")),
        (("--peft_method", "ia3"), ("--peft_method ia3", "lora, none")),
        (("--lora_rank", "0"), ("--lora_rank 0", "1 or more")),
        (("--dataset_name",), ("--dataset_name", "needs a value")),
        (("--lora_r",), ("--lora_r", "needs a value")),
        (("--wandb_project",), ("--wandb_project", "needs a value")),
        (("--dataset_name", ""), ("--dataset_name ''", "is empty")),
        (("--dataset_name=",), ("--dataset_name ''", "is empty")),
        (("--lora_rank=",), ("--lora_rank ''", "is empty")),
        (("--no_lora_rank",), ("--no_lora_rank", "not a switch")),
        (("--no_use_dora", "true"), ("--no_use_dora true", "takes no value")),
        (("--use_flash_attn", "2"), ("--use_flash_attn 2", "true or false")),
        (("--accelerate_launch_args", "{a"), ("--accelerate_launch_args {a", "JSON text")),
        (("--accelerate_launch_args", "[1]"), ("--accelerate_launch_args [1]", "a mapping")),
        (("--dataset_kwargs", '{"a": 1}'), ("dataset_kwargs: a", "skip_prepare_dataset")),
        (("train",), ("Unexpected train", "--key value")),
        (("-x",), ("Unexpected -x",)),
        (("a.yaml", "b.yaml"), ("Unexpected a.yaml b.yaml", "one configuration file")),
        (("a.yaml", "--config", "b.yaml"), ("More than one configuration file",)),
        (("--config",), ("--config", "needs one file")),
        (("--=3",), ("--=3", "not a flag")),
        (("--",), ("--:", "not a flag")),
    ],
)
def test_a_refusal_names_flag_value_and_what_is_allowed(words: tuple[str, ...], parts: tuple[str, ...]) -> None:
    text = refused(*words)
    assert [part for part in parts if part not in text] == []


def test_contradictions_in_one_source_name_both(tmp_path: Path) -> None:
    text = refused("--num_epochs", "3", "--num_train_epochs", "4")
    assert "--num_epochs 3 and --num_train_epochs 4 contradict" in text
    assert "--seed 1 and --seed 2" in refused("--seed", "1", "--seed", "2")
    assert "--use_habana true and --backend cpu" in refused("--use_habana", "--backend", "cpu")
    file = tmp_path / "run.yaml"
    file.write_text("r: 8\nlora_rank: 16\n")
    assert f"r: 8 ({file}) and lora_rank: 16 ({file})" in refused(str(file))


def test_the_cpu_contradicts_any_other_backend_and_not_auto() -> None:
    for words in (["--use_cpu"], ["--no_cuda"], ["--use_cpu", "--backend", "auto"], ["--use_cpu", "--backend", "cpu"]):
        assert flags(*words).backend == "cpu"
    assert "--use_cpu true and --backend cuda contradict" in refused("--use_cpu", "--backend", "cuda")
    assert "--use_habana true and --use_cpu true contradict" in refused("--use_habana", "--use_cpu")


@pytest.mark.parametrize("name", ["habana", "gaudi"])
def test_a_road_to_gaudi_may_be_named_beside_the_switch(name: str) -> None:
    """Either order: the name says more exactly what the switch says."""
    assert parse(["--use_habana", "--backend", name], environ={}).backend == name
    assert parse(["--backend", name, "--use_habana", "true"], environ={}).backend == name
    assert parse(["--use_habana", "false", "--backend", name], environ={}).backend == name


@pytest.mark.parametrize(("text", "backend"), [("true", "cpu"), ("True", "cpu"), ("1", "cpu"), ("False", "auto")])
def test_accelerates_variable_for_the_cpu(text: str, backend: str) -> None:
    environ = {"ACCELERATE_USE_CPU": text}
    assert parse([], environ=environ).backend == backend
    if backend == "cpu":
        assert parse(["--backend", "cpu"], environ=environ).backend == "cpu"
        with pytest.raises(ConfigError, match=f"--use_habana true and ACCELERATE_USE_CPU={text} contradict"):
            parse(["--use_habana"], environ=environ)


def test_saying_the_same_twice_is_no_contradiction() -> None:
    run = flags("--num_epochs", "3", "--num_train_epochs", "3.0", "--lora_r", "8", "--r", "8", "--bf16", "--bf16=true")
    assert run.tuning.lora_rank == 8
    assert float(run.raw["num_train_epochs"]) == 3


def test_secrets_are_not_shown() -> None:
    text = refused("--token", "hf_first", "--token", "hf_second")
    assert "hf_" not in text
    assert "hf_" not in repr(flags("--token", "hf_first").model)


def test_starting_up_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from vlm_lora.config.sources import parse; import vlm_lora.config.resolution;"
        "from vlm_lora.cli.help import help_text; help_text(); parse(['--bf16'], environ={});"
        "print(sorted({'torch', 'transformers', 'datasets', 'accelerate'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_gaudi_readme_command() -> None:
    command = (
        "--model_name_or_path google/gemma-3-12b-it --dataset_name HuggingFaceM4/ChartQA --num_train_epochs "
        "5 --per_device_train_batch_size 1 --gradient_accumulation_steps 1 --do_train --do_eval --output_dir "
        "./output_gemma3 --gaudi_config_name Habana/gpt2 --use_habana --lora_rank 16 --max_train_samples 128 "
        "--overwrite_output_dir --bf16 --use_lazy_mode --gradient_checkpointing"
    )
    run = flags(*re.split(" ", command))
    assert run.backend in ("gaudi", "habana"), "by the installed transformers"
    assert run.overwrite_output_dir
    assert run.data.max_train_samples == 128
    assert set(run.raw) == {
        "num_train_epochs",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "do_train",
        "do_eval",
        "output_dir",
        "gaudi_config_name",
        "bf16",
        "use_lazy_mode",
        "gradient_checkpointing",
    }
    assert settings(run)["model_name_or_path"] == "google/gemma-3-12b-it"
