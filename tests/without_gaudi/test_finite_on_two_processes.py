"""What is not finite on one of two CPU processes ends both at that step, or both skip it, whatever joins them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from support.rows import write_uneven_rows
from support.stacks import MAIN, ROOT, on_cpu, run_words

LAUNCHED = ROOT / "tests" / "support" / "launched" / "not_finite.py"
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
RUNS: dict[str, tuple[str, dict[str, object]]] = {
    "ddp": ("loss", {}),
    "zero2": ("gradient", {"deepspeed": "zero2"}),
    "zero3": ("gradient", {"deepspeed": "zero3"}),
}
SKIPS: dict[str, tuple[str, dict[str, object]]] = {
    "undisturbed": ("", {}),
    "ddp": ("loss", {}),
    "zero2_bf16": ("loss", {"deepspeed": "zero2", "bf16": True}),
    "zero3": ("loss", {"deepspeed": "zero3"}),
}
SKIPPED = {
    f"{name}_skips": (what, {**more, "on_nonfinite": "skip_step", "log_level": "warning"})
    for name, (what, more) in SKIPS.items()
}
# transformers keeps ZeRO-3's settings as long as anything of its run is alive: the runs without an engine come first.
ALL = dict(sorted({**RUNS, **SKIPPED}.items(), key=lambda one: "deepspeed" in one[1][1]))


@pytest.fixture(scope="module")
def found(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of each run its folder and, by rank, its exit code and what it said; all by one pair of processes."""
    folder = tmp_path_factory.mktemp("finite")
    data = write_uneven_rows(folder / "data", rows=8)
    saves = {"do_train": True, "max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    runs = [
        (on_cpu(model_folder("gemma3"), data, folder / name, per_device_train_batch_size=1, **saves, **more), what)
        for name, (what, more) in ALL.items()
    ]
    (folder / "runs.json").write_text(json.dumps(runs), encoding="utf-8")
    report = folder / "report.json"
    done = run_words([*TORCHRUN, LAUNCHED, folder / "runs.json", report], python=MAIN, variables={})
    assert done.returncode == 0, done.stderr[-6000:]
    ranks = [json.loads(Path(f"{report}{end}").read_text(encoding="utf-8")) for end in ("", ".1")]
    return {name: (folder / name, [rank[place] for rank in ranks]) for place, name in enumerate(ALL)}


@pytest.mark.xdist_group("finite")
@pytest.mark.parametrize("engine", RUNS)
def test_both_end_at_that_step(engine: str, found: Any) -> None:
    folder, ranks = found[engine]
    assert [rank["code"] for rank in ranks] == [1, 1], ranks
    errors = [re.findall(r"^error: .*", rank["said"], re.MULTILINE) for rank in ranks]
    [said] = errors[0]
    assert errors[1] == [], "the first rank tells it"
    assert "Traceback" not in ranks[0]["said"] + ranks[1]["said"]
    if RUNS[engine][0] == "loss":
        assert "Step 2: the loss is not finite (nan). Rows whose loss is not finite: " in said
        assert re.search(r"train\.jsonl row \d \(line \d\) \(rank 1\)\. The gradient of ", said)
    else:
        assert re.search(r"Step 2: the loss is \d+\.\d+, but its gradient is not finite\.", said)
        assert re.search(
            r"row \d \(line \d\) \(rank 0\), \S+ row \d \(line \d\) \(rank 1\)\. The gradient of \S+up_proj\.lora_B",
            said,
        )
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-1"]
    saved = load_file(folder / "checkpoint-1" / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values())
    assert not (folder / "adapter_model.safetensors").exists()


@pytest.mark.xdist_group("finite")
@pytest.mark.parametrize("engine", [name for name in SKIPS if name != "undisturbed"])
def test_both_skip_that_step(engine: str, found: Any) -> None:
    """Weights and schedule are after it what they were before, and it is counted; of the rows only rank 0 tells."""
    folder, ranks = found[f"{engine}_skips"]
    assert [rank["code"] for rank in ranks] == [0, 0], ranks
    what = r"loss is not finite \(nan\)" if SKIPS[engine][0] == "loss" else r"loss is \d+\.\d+, but its gradient"
    assert len(re.findall(rf"Step 2: the {what}", " ".join(ranks[0]["said"].split()))) == 1
    assert "Step 2" not in ranks[1]["said"]
    assert results_of(folder)["train_skipped_steps"] == 1
    assert unchanged_after(folder) == [2]
    assert rates_of(folder)[1] == rates_of(folder)[2]


@pytest.mark.xdist_group("finite")
def test_without_a_bad_step_none_is_skipped(found: Any) -> None:
    """The control."""
    folder, ranks = found["undisturbed_skips"]
    assert [rank["code"] for rank in ranks] == [0, 0], ranks
    assert results_of(folder)["train_skipped_steps"] == 0
    assert unchanged_after(folder) == []
    assert rates_of(folder)[1] != rates_of(folder)[2]


def results_of(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    return results


def unchanged_after(folder: Path) -> list[int]:
    """Return the steps after which all weights are as before; all are finite."""
    saved = [load_file(folder / f"checkpoint-{step}" / "adapter_model.safetensors") for step in (1, 2, 3)]
    assert all(tensor.isfinite().all() for tensors in saved for tensor in tensors.values())
    pairs = enumerate(itertools.pairwise(saved), 2)
    return [step for step, (before, after) in pairs if all(after[name].equal(before[name]) for name in before)]


def rates_of(folder: Path) -> list[float]:
    """Return the learning rate of each step."""
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    return [entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry]
