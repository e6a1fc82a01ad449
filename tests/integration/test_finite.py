"""A loss, gradient or weight that is not finite: the run ends within a step and leaves nothing that is not finite.

Gaudi's stack runs all of it on the simulated device, the main one on the CPU.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.poison import poison_gradient, poison_losses, poison_weight
from support.rows import write_uneven_rows
from support.sealed import seal_again
from support.stacks import GAUDI, on_cpu, on_hpu
from vlm_lora.cli.main import main, run_script

ON_GAUDI = GAUDI.parents[1] == Path(sys.prefix)
script_flags = on_hpu if ON_GAUDI else on_cpu
DEVICE = "--use_habana" if ON_GAUDI else "--use_cpu"
# optimum-habana is written for an older torch, which now warns about what it calls (torch.jit.script, ...).
OLDER = ("DeprecationWarning", "FutureWarning", "UserWarning") if ON_GAUDI else ()
pytestmark = [pytest.mark.filterwarnings(f"ignore::{category}") for category in OLDER]

ADAPTER = "adapter_model.safetensors"
SAVES = {"do_train": True, "max_steps": 3, "per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_uneven_rows(tmp_path_factory.mktemp("finite") / "data", rows=6, validation=3)


@pytest.fixture
def failing(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run with flags that must end with exit code 1; return the only line of its error."""

    def run(**flags: object) -> str:
        assert run_script(script_flags(model_folder("gemma3"), data, tmp_path / "out", **{**SAVES, **flags})) == 1
        return only_error(capsys)

    return run


def only_error(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert "Traceback" not in said
    [line] = [line for line in said.splitlines() if line.startswith("error: ")]
    return line


def checkpoints(folder: Path) -> list[str]:
    """Return the checkpoints of a run, each of them with finite weights."""
    found = sorted(path.name for path in folder.glob("checkpoint-*"))
    for name in found:
        assert all(tensor.isfinite().all() for tensor in load_file(folder / name / ADAPTER).values())
    assert not (folder / ADAPTER).exists()
    assert not list(folder.glob("*_results.json"))
    return found


def test_a_loss_ends_the_run_and_names_its_row(
    failing: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second micro-batch of the second step; the best checkpoint would be loaded at the end."""
    poison_losses(monkeypatch, batch=4, row=0, value=math.nan)
    best = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    # One row a batch, so that all of the second step's rows are the fourth batch's or the third's.
    said = failing(gradient_accumulation_steps=2, per_device_train_batch_size=1, **best)
    assert "Step 2: the loss is not finite (nan). Rows whose loss is not finite: " in said
    assert re.search(
        r"train\.jsonl row \d \(line \d\)\. The gradient of \S+lora_A\S+ is not finite, nor are those of 27", said
    )
    assert checkpoints(tmp_path / "out") == ["checkpoint-1"]


@pytest.mark.parametrize("norm", [0, 1])
def test_a_gradient_ends_the_run_and_is_named(
    norm: int, failing: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it would be clipped, which makes NaN of all others, or not."""
    poison_gradient(monkeypatch, step=2, name="layers.1.mlp.up_proj.lora_B")
    said = failing(max_grad_norm=norm)
    assert re.search(r"Step 2: the loss is \d+\.\d+, but its gradient is not finite\. The rows of this step: ", said)
    assert len(re.findall(r"train\.jsonl row \d", said)) == 2
    assert re.search(r"The gradient of \S+layers\.1\.mlp\.up_proj\.lora_B\S+ is not finite\.", said)
    assert checkpoints(tmp_path / "out") == ["checkpoint-1"]


def test_a_rate_that_throws_the_weights_away_ends_the_run(failing: Callable[..., str], tmp_path: Path) -> None:
    said = failing(learning_rate=1e30, bf16=True)
    assert "Step 2: the loss is not finite (nan)." in said
    # Gaudi's optimizer goes on in a bad step: without its gradient, by the momentum of the one before.
    assert re.search(r"Trained weights have grown to 1(\.45)?e\+30: the learning rate is too large\.", said)
    assert checkpoints(tmp_path / "out") == ["checkpoint-1"]


def test_weights_are_looked_at_before_they_are_saved(
    failing: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_weight(monkeypatch, step=2, name="layers.0.mlp.up_proj.lora_B")
    said = failing()
    assert re.search(r"After step 2, 1 number of 1 weight is NaN or infinite \(\S+up_proj\.lora_B\S+: 1\): not", said)
    assert checkpoints(tmp_path / "out") == ["checkpoint-1"]


def test_the_last_weights_are_looked_at_too(
    failing: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_weight(monkeypatch, step=2, name="layers.0.mlp.up_proj.lora_B")
    said = failing(save_strategy="no", max_steps=2)
    assert "After step 2, 1 number of 1 weight is NaN or infinite" in said
    assert checkpoints(tmp_path / "out") == []


@pytest.fixture(scope="module")
def finished(model_folder: Callable[[str], Path], data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, saved at each; its best metric is a perplexity."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    best = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "perplexity"}
    flags = script_flags(model_folder("gemma3"), data, folder, **{**SAVES, **best, "max_steps": 2})
    assert run_script(flags) == 0
    return folder


def spoiled(folder: Path, place: Path, *, file: str = ADAPTER) -> tuple[Path, str]:
    """Copy a folder and put a NaN into the last of its weights; return the copy and the weight's name."""
    shutil.copytree(folder, place)
    tensors = load_file(place / file)
    name = max(tensors)
    tensors[name].view(-1)[0] = math.nan
    save_file(tensors, place / file, metadata={"format": "pt"})
    seal_again(place)
    return place, name


@pytest.mark.parametrize("verb", ["eval", "ask"])
def test_an_adapter_is_refused(
    verb: str, finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, name = spoiled(finished, tmp_path / "adapter")
    more = {
        "eval": ["--dataset_name", str(data), "--output_dir", str(tmp_path / "out")],
        "ask": ["--prompt", "What?", "--image", str(data / "train-0.png")],
    }
    assert main([verb, "--model_name_or_path", str(adapter), DEVICE, *more[verb]]) == 1
    said = only_error(capsys)
    assert said.startswith(f"error: {adapter}: 1 number of 1 weight is NaN or infinite ({name}: 1).")


def test_a_base_is_refused(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, name = spoiled(model_folder("gemma3"), tmp_path / "base", file="model.safetensors")
    assert run_script(script_flags(base, data, tmp_path / "out", **SAVES)) == 1
    said = only_error(capsys)
    assert said.startswith(f"error: {base}: 1 number of 1 weight is NaN or infinite (")
    assert name.split(".")[-2] in said


def test_a_checkpoint_is_not_gone_on_from(
    model_folder: Callable[[str], Path], finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, _ = spoiled(finished / "checkpoint-1", tmp_path / "out" / "checkpoint-1")
    flags = script_flags(model_folder("gemma3"), data, tmp_path / "out", **SAVES, resume_from_checkpoint=place)
    assert run_script(flags) == 1
    said = only_error(capsys)
    assert "--resume_from_checkpoint: in the checkpoint of step 1, 1 number of 1 weight is NaN or infinite" in said
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-1"]


def test_an_evaluation_names_the_rows(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlm_lora.model import objective

    sums = objective.row_sums

    def poisoned(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        found = sums(logits, targets)
        found[1, 0] = math.inf
        return found

    monkeypatch.setattr(objective, "row_sums", poisoned)
    flags = script_flags(finished, data, tmp_path / "out", do_eval=True, per_device_eval_batch_size=2)
    assert run_script(flags) == 1
    said = only_error(capsys)
    # The fourth row only fills the second batch.
    assert "Evaluation: the loss of 2 of 4 rows is not finite" in said
    assert re.search(r"Rows whose loss is not finite: \S+validation\.jsonl row 1 \(line 2\), ", said)
    assert not (tmp_path / "out" / "eval_results.json").exists()


def test_a_perplexity_beyond_all_numbers_is_null_in_valid_files(
    model_folder: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vlm_lora.model import objective

    sums = objective.row_sums
    scale = torch.tensor([1000.0, 1.0])
    monkeypatch.setattr(objective, "row_sums", lambda logits, targets: sums(logits, targets) * scale.to(logits))
    evaluated = {"do_eval": True, "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "perplexity"}
    folder = tmp_path / "out"
    flags = {**SAVES, **evaluated, "max_steps": 1, "log_level": "warning"}
    assert run_script(script_flags(model_folder("gemma3"), data, folder, **flags)) == 0
    written = capsys.readouterr()
    assert "its perplexity is beyond what a number holds" in written.err
    for text in (
        written.out[f"\n{written.out}".index("\n{\n") :],
        *((folder / name).read_text() for name in ("all_results.json", "eval_results.json", "trainer_state.json")),
        (folder / "checkpoint-1" / "trainer_state.json").read_text(),
    ):
        values = json.loads(text, parse_constant=refuse)
    assert values["best_metric"] is None
    assert any(entry.get("eval_perplexity", 0) is None for entry in values["log_history"])
    # It can be gone on from.
    more = {**flags, "max_steps": 2, "resume_from_checkpoint": "true"}
    assert run_script(script_flags(model_folder("gemma3"), data, folder, **more)) == 0


def refuse(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")
