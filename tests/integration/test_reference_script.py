"""The reference script's single-card command, typed as its README has it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.datasets import write_chartqa_folder

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def chartqa(tmp_path: Path) -> Path:
    folder = tmp_path / "ChartQA"
    write_chartqa_folder(folder, train=6, val=3, test=2, seed=0)
    return folder


def reference_command(model: Path, data: Path, output: Path) -> list[str]:
    return (
        f"run_lora_vlm.py --model_name_or_path {model} --dataset_name {data} --num_train_epochs 5 "
        "--per_device_train_batch_size 1 --gradient_accumulation_steps 1 --do_train --do_eval "
        f"--output_dir {output} --lora_rank 16 --max_train_samples 4 --overwrite_output_dir --bf16 "
        "--gradient_checkpointing"
    ).split()


def run_command(flags: list[str]) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *flags],
        cwd=EXAMPLES,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_trains_and_evaluates_on_the_cpu(model_folder: Callable[[str], Path], chartqa: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = run_command(reference_command(model_folder("gemma3"), chartqa, output))
    assert done.returncode == 0, done.stderr
    results = json.loads((output / "all_results.json").read_text(encoding="utf-8"))
    assert results["train_samples"] == 4
    assert results["eval_samples"] == 3, "the split called val is the validation split; test is not touched"
    assert results["epoch"] == 5
    written = {path.name for path in output.iterdir()}
    assert written >= {
        "adapter_model.safetensors",
        "adapter_config.json",
        "processor_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "trainer_state.json",
        "train_results.json",
        "eval_results.json",
        "all_results.json",
        "run_config.yaml",
        "README.md",
    }
