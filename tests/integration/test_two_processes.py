"""Two processes over gloo: the same update and the same perplexity as one process at the same global batch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.rows import write_uneven_rows
from support.runs import TORCHRUN, logged, run, run_processes, script_flags
from vlm_lora.compat import IS_5
from vlm_lora.model.manifest import NAME, Manifest, read_manifest

LAUNCH = [
    str(Path(sys.executable).with_name("vlm-lora")),
    *["launch", "--backend", "cpu", "--world_size", "2", "train"],
]


# Nothing sets torch's variables here: they are made from mpirun's.
MPIRUN = [
    *(str(Path(sys.executable).with_name("mpirun")), "--allow-run-as-root", "--oversubscribe", "-n", "2"),
    *(sys.executable, "run_lora_vlm.py"),
]


# On Gaudi's stack the launchers have tests of their own, with cards (tests/gaudi/test_launchers.py).
LAUNCHERS = {"torchrun": TORCHRUN, **({"vlm-lora launch": LAUNCH, "mpirun": MPIRUN} if IS_5 else {})}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_two_processes_equal_one(name: str, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Six rows as 2 x 3 and 1 x 6; five validation rows, so that the last batch is uneven."""
    launcher = LAUNCHERS[name]
    data = write_uneven_rows(tmp_path / "data", rows=6, validation=5)
    # The whole command for both: one process talks to nobody.
    flags = {"do_train": True, "do_eval": True, "max_steps": 1, "per_device_eval_batch_size": 2, "ddp_backend": "gloo"}
    one = run(model_folder("gemma3"), data, tmp_path / "one", **flags, per_device_train_batch_size=6)
    words = script_flags(model_folder("gemma3"), data, tmp_path / "two", **flags, per_device_train_batch_size=3)
    # One launch with processes that import everything themselves.
    run_processes([*launcher, *words], cold=launcher is LAUNCH)
    two = json.loads((tmp_path / "two" / "all_results.json").read_text(encoding="utf-8"))
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)
    assert logged(tmp_path / "two", "grad_norm") == pytest.approx(logged(tmp_path / "one", "grad_norm"), rel=1e-5)
    assert two["eval_supervised_tokens"] == one["eval_supervised_tokens"]
    assert two["eval_perplexity"] == pytest.approx(one["eval_perplexity"], rel=1e-5)
    smaller = run(model_folder("gemma3"), data, tmp_path / "half", **flags, per_device_train_batch_size=3)
    assert smaller["train_loss"] != pytest.approx(one["train_loss"], rel=1e-3), "three rows are another batch"


@pytest.mark.parametrize(
    "kind",
    [{}, {"group_by_length": True}, {"streaming": True, "shuffle_buffer": 4}],
    ids=["table", "grouped", "stream"],
)
def test_a_run_resumed_inside_its_second_epoch_equals_the_whole_one(
    kind: dict[str, object], model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Three steps an epoch; the trainer alone would go on in the first epoch's order."""
    data = write_uneven_rows(tmp_path / "data", rows=6)
    flags = {
        "do_train": True,
        "max_steps": 6,
        "per_device_train_batch_size": 1,
        "learning_rate": 1e-2,
        "save_strategy": "steps",
        "save_steps": 4,
        "validation_fraction": 0,
        "ddp_backend": "gloo",
        **kind,
    }
    whole, resumed, other = tmp_path / "whole", tmp_path / "resumed", tmp_path / "other"
    go_on = {**flags, "resume_from_checkpoint": whole / "checkpoint-4"}
    for output, words in (
        (whole, flags),
        (resumed, go_on),
        (other, {**go_on, "data_seed": 7, "allow_changed": "data_seed"}),
    ):
        run_processes([*TORCHRUN, *script_flags(model_folder("gemma3"), data, output, **words)])
    assert len(logged(whole, "loss")) == 6
    manifest = read_manifest(whole / "checkpoint-4" / NAME)
    assert isinstance(manifest, Manifest)
    assert {name: entry.rank for name, entry in manifest.files.items() if name.startswith("rng_")} == {
        "rng_state_0.pth": 0, "rng_state_1.pth": 1
    }  # fmt: skip
    assert logged(resumed, "loss") == logged(whole, "loss")
    name = "adapter_model.safetensors"
    assert (resumed / name).read_bytes() == (whole / name).read_bytes()
    # The control: the same rows in another order.
    assert logged(other, "loss")[:4] == logged(whole, "loss")[:4]
    assert logged(other, "loss")[4:] != logged(whole, "loss")[4:]
