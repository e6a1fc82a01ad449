"""Reading data waits for no package that only models and trainers need."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.rows import write_uneven_rows

HEAVY = ("peft", "bitsandbytes", "deepspeed", "transformers.trainer", "transformers.training_args")


@pytest.mark.parametrize("verb", ["check", "preview", "shard"])
def test_verbs_of_data(verb: str, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    data = str(write_uneven_rows(tmp_path / "data", rows=4))
    words = ["--dataset_name", data, "--model_name_or_path", str(model_folder("gemma3")), "--use_cpu"]
    if verb == "shard":
        words = ["--input", data, "--out_dir", str(tmp_path / "shards"), "--num_shards", "1"]
    code = (
        "import sys; from vlm_lora.cli.main import main\n"
        f"status = main({[verb, *words]!r})\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], 'transformers' in sys.modules, status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    reads_rows = verb != "shard"
    assert done.stdout.splitlines()[-1] == f"[] {reads_rows} 0", "the control: what encodes a row needs transformers"
