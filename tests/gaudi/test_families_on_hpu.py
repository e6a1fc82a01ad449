"""Every family that Gaudi's transformers has, trained and evaluated on the simulated device, as on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from support.rows import write_uneven_rows
from support.runs import run
from support.stacks import on_hpu
from support.tiny import available
from vlm_lora.cli.main import run_script


@pytest.mark.parametrize("name", available())
def test_loss_and_perplexity_are_those_of_the_cpu(
    name: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Two steps: the first pass is checked on the card, the later one takes the way without reads."""
    data = write_uneven_rows(tmp_path / "data", rows=4, validation=2)
    flags = {
        "do_train": True,
        "do_eval": True,
        "max_steps": 2,
        "bf16": False,
        "static_shapes": True,
        "per_device_train_batch_size": 2,
        "trust_remote_code": name == "phi3_v",
    }
    assert run_script(on_hpu(model_folder(name), data, tmp_path / "hpu", **flags)) == 0
    found = json.loads((tmp_path / "hpu" / "all_results.json").read_text(encoding="utf-8"))
    expected = run(model_folder(name), data, tmp_path / "cpu", backend="cpu", **flags)
    assert found["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-3)
    assert found["eval_perplexity"] == pytest.approx(expected["eval_perplexity"], rel=5e-3)
