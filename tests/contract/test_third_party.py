"""A third party's backend, as the page on adding hardware prints it, in a distribution of its own: it trains."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.rows import write_uneven_rows
from support.runs import script_flags
from support.warm import warmed

PAGE = Path(__file__).parents[2] / "docs" / "backends.md"
VLM_LORA = Path(sys.executable).with_name("vlm-lora")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that the distribution is installed into, which nothing else has on its path."""
    folder = tmp_path_factory.mktemp("site")
    text = PAGE.read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    [entry] = re.findall(r'```toml\n.*?^(mycard) = "(.*?)"$', text, flags=re.DOTALL | re.MULTILINE)
    assert code.count("\n") <= 60
    (folder / "vlm_lora_mycard.py").write_text(code, encoding="utf-8")
    information = folder / "vlm_lora_mycard-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: vlm-lora-mycard\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[vlm_lora.backends]\n{entry[0]} = {entry[1]}\n")
    return folder


def vlm_lora(site: Path | None, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"PYTHONPATH": str(site)} if site else {})}
    return subprocess.run(
        warmed([VLM_LORA, *map(str, words)]), env=environment, capture_output=True, text=True, check=False
    )


def test_it_trains_evaluates_and_logs(site: Path, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    data = write_uneven_rows(tmp_path / "data", rows=4, validation=2)
    settings = {"do_train": True, "do_eval": True, "max_steps": 2, "log_level": "info"}
    flags = script_flags(model_folder("gemma3"), data, tmp_path / "out", **settings, use_cpu=False)
    done = vlm_lora(site, "train", *flags, "--use_mycard")
    assert done.returncode == 0, done.stderr
    assert "Backend: mycard on MyCard 48 GiB." in done.stderr
    assert "MyCard: firmware 1.2." in done.stderr
    figures = json.loads((tmp_path / "out" / "all_results.json").read_text(encoding="utf-8"))
    assert figures["train_loss"] > 0
    assert figures["eval_perplexity"] > 1


def test_it_plans(site: Path, model_folder: Callable[[str], Path]) -> None:
    words = ("plan", "--model_name_or_path", model_folder("llava"), "--max_length", "256", "--json")
    done = vlm_lora(site, *words, "--device", "mycard-48")
    assert done.returncode == 0, done.stderr
    [device] = json.loads(done.stdout)["devices"]
    assert device["device"] == "MyCard-48"


def test_without_the_distribution_there_is_no_such_backend(tmp_path: Path) -> None:
    """The control: it comes from the folder, and the core knows nothing of it."""
    words = ("train", "--model_name_or_path", tmp_path, "--dataset_name", tmp_path, "--output_dir", tmp_path / "out")
    done = vlm_lora(None, *words, "--backend", "mycard")
    assert done.returncode == 1
    assert "--backend mycard: installed backends are cpu, cuda, gaudi, habana." in done.stderr
