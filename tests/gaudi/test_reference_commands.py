"""The reference script's Gaudi commands, as its README has them, with local folders for its Hub ids."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.datasets import write_chartqa_folder
from support.stacks import GAUDI, Road, both_roads, run_words

GAUDI_CONFIG = {"use_fused_adam": True, "use_fused_clip_norm": True, "use_torch_autocast": True}


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., list[str]]:
    write_chartqa_folder(tmp_path / "ChartQA", train=8, val=3, test=2, seed=0)
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "gaudi_config.json").write_text(json.dumps(GAUDI_CONFIG))

    def words(model: Path, *more: str) -> list[str]:
        text = (
            f"run_lora_vlm.py --model_name_or_path {model} --dataset_name {tmp_path}/ChartQA --num_train_epochs 5 "
            "--per_device_train_batch_size 1 --gradient_accumulation_steps 1 --do_train --do_eval "
            f"--output_dir {tmp_path}/output --gaudi_config_name {tmp_path}/gpt2 --use_habana --lora_rank 16 "
            "--max_train_samples 2 --overwrite_output_dir --bf16 --log_level info"
        )
        return [*text.split(), *more, "--gradient_checkpointing"]

    return words


def results(tmp_path: Path) -> dict[str, float]:
    figures: dict[str, float] = json.loads((tmp_path / "output" / "all_results.json").read_text(encoding="utf-8"))
    return figures


def check_trained(done: subprocess.CompletedProcess[str], tmp_path: Path, mode: str) -> None:
    assert done.returncode == 0, done.stderr
    assert f"Gaudi mode: {mode}." in done.stderr
    # The vendor's loop switches it off; a layer that is not recomputed in the first step ends the run.
    assert "Gradient checkpointing of 2 decoder layers" in done.stderr
    found = results(tmp_path)
    assert found["train_samples"] == 2
    assert found["eval_samples"] == 3
    assert found["eval_perplexity"] > 1
    written = {path.name for path in (tmp_path / "output").iterdir()}
    assert written >= {"adapter_model.safetensors", "shape_plan.json"}
    if "Backend: habana" in done.stderr:
        assert written >= {"gaudi_config.json", "preprocessor_config.json"}
    else:
        assert "use_fused_adam and use_fused_clip_norm are GaudiTrainer's and not used here" in done.stderr


# The other families run in both modes in test_same_numbers.py.
@pytest.mark.parametrize("shape", ["gemma3", "qwen2_5_vl"])
def test_lazy_mode(
    shape: str, model_folder: Callable[[str], Path], command: Callable[..., list[str]], tmp_path: Path
) -> None:
    words = command(model_folder(shape), "--use_lazy_mode")
    done = run_words(words, python=GAUDI, variables={"PT_HPU_LAZY_MODE": "1"}, cold=shape == "gemma3")
    check_trained(done, tmp_path, "lazy")


@both_roads
def test_first_tip_of_the_readme_eager_mode(
    road: Road, model_folder: Callable[[str], Path], command: Callable[..., list[str]], tmp_path: Path
) -> None:
    variables = {**road.variables, "PT_HPU_LAZY_MODE": "0"}
    done = run_words(command(model_folder("gemma3")), python=road.python, variables=variables)
    check_trained(done, tmp_path, "eager")
    assert f"Backend: {road} " in done.stderr


@both_roads
def test_second_tip_of_the_readme_torch_compile(
    road: Road, model_folder: Callable[[str], Path], command: Callable[..., list[str]], tmp_path: Path
) -> None:
    words = command(model_folder("llava"), "--max_steps", "2")
    variables = {**road.variables, "PT_HPU_LAZY_MODE": "0", "PT_HPU_TC_MODE": "1"}
    # The other road has a warm process in this mode already, for test_compilations.py.
    done = run_words(words, python=road.python, variables=variables, cold=road.python == GAUDI)
    check_trained(done, tmp_path, "compile")


@both_roads
def test_eight_cards_at_two(
    road: Road, model_folder: Callable[[str], Path], command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """The command for all eight cards, which this machine has cores for two of."""
    launched = ["../launchers/gaudi_spawn.py", "--world_size", "2", "--use_mpi", *command(model_folder("gemma3"))]
    lazy = ["--use_lazy_mode"] if road.python == GAUDI else []
    done = run_words([*launched, *lazy], python=road.python, variables=road.variables)
    check_trained(done, tmp_path, "lazy" if lazy else "eager")
    assert "on 2 processes" in done.stderr


def test_typed_lazy_mode_against_the_environment(
    model_folder: Callable[[str], Path], command: Callable[..., list[str]], tmp_path: Path
) -> None:
    words = command(model_folder("gemma3"), "--use_lazy_mode")
    done = run_words(words, python=GAUDI, variables={"PT_HPU_LAZY_MODE": "0"}, cold=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "PT_HPU_LAZY_MODE=0" in done.stderr
    assert "--use_lazy_mode" in done.stderr
    assert not (tmp_path / "output").exists()
