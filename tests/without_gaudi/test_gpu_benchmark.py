"""`python -m benchmarks.gpu` without a GPU: budget, peers and wheels, what it checks first, how a run goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from benchmarks.compare import ContenderError, OutOfTimeError, UnequalLossError, require_equal_counts
from benchmarks.figures import Figure
from benchmarks.folders import configuration, processor_of
from benchmarks.gpu import __main__ as command
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.correctness import CHECKS, WAYS, Way, _control, difference
from benchmarks.gpu.peers import look, unpack
from benchmarks.shapes import PUBLISHED, Shape, tiny


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_stage_has_its_share_and_leaves_the_rest_to_those_behind_it() -> None:
    clock = Clock()
    budget = Budget(100, {"a": 1, "b": 1, "c": 2}, clock)
    assert budget.planned() == {"a": 25, "b": 25, "c": 50}
    left = budget.begin("a")
    assert left() == 25
    clock.now += 10
    assert left() == 15
    assert budget.begin("b")() == 30
    clock.now += 95
    assert budget.left() == -5
    assert budget.begin("c")() == 0


def test_wheels_stand_in_for_peers_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.peers._installed", {"trl": "0.9.0", "bitsandbytes": "0.50"}.get)
    words = [state.words() for state in look(None)]
    assert words[0] == "trl 1.16.0: 0.9.0 is installed, and no wheel of it was named: all rows against TRL are left out"
    assert words[1] == "bitsandbytes: installed (0.50)"
    assert "flash-attn: not installed, and no wheel" in words[2]
    for wrong in (tmp_path / "none", tmp_path):
        with pytest.raises(SystemExit, match=r"must be a folder with \.whl files"):
            look(wrong)
    for name in ("trl-1.15.0-py3-none-any.whl", "trl-1.16.0-py3-none-any.whl", "flash_attn-2.8.3-cp311-cp311-any.whl"):
        (tmp_path / name).touch()
    found = {state.peer.name: state.wheel for state in look(tmp_path)}
    assert found["trl"] == tmp_path / "trl-1.16.0-py3-none-any.whl"
    assert found["flash-attn"] == tmp_path / "flash_attn-2.8.3-cp311-cp311-any.whl"
    assert found["bitsandbytes"] is None


def test_a_broken_wheel_is_named_and_nothing_to_unpack_is_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("benchmarks.gpu.peers._installed", lambda name: None)
    (tmp_path / "trl-1.16.0-py3-none-any.whl").write_text("no zip")
    wrong = unpack(look(tmp_path), tmp_path, tmp_path / "there")
    assert wrong is not None
    assert "pip could not unpack" in wrong
    assert unpack(look(None), None, tmp_path / "there") is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--seconds 481", "--seconds 481: must be 60 to 480"),
        ("--device cpu", "Add --tiny"),
        ("--stages speed", "--stages speed: allowed are correctness, Gemma3 4B"),
        ("--tiny --device cpu", "type --json FILE"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_built(words: str, told: str) -> None:
    with pytest.raises(SystemExit, match=told):
        command.main(words.split())


def test_a_dry_run_says_everything_and_does_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "go", None)
    command.main(["--dry_run"])
    said = capsys.readouterr().out
    for name in (*command.SHARES, *WAYS, *(one for one, _, _ in CHECKS), "trl 1.16.0: installed", "480 seconds"):
        assert name in said
    assert "262,208 columns" in said
    assert "15 rounds of ours" in said


def test_a_run_goes_on_after_a_stage_that_failed_or_had_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    met = Figure(name="difference", value=0.001, goal=0.01)

    def run_stage(name: str, *_: Any) -> Any:
        if name == "Gemma3 4B":
            raise ContenderError("TRL: Traceback\nValueError: no")
        if name == "Qwen2.5-VL 3B":
            raise OutOfTimeError
        return [met], ["flash attention: it is for CUDA"]

    monkeypatch.setattr(command, "run_stage", run_stage)
    flags = ["--tiny", "--device", "cpu", "--json", str(tmp_path / "gpu.json"), "--folder", str(tmp_path / "models")]
    with pytest.raises(SystemExit, match="Failed, or not as it must be: Gemma3 4B"):
        command.main(flags)
    stages = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert list(stages) == list(command.SHARES)
    assert stages["Gemma3 4B"]["missing"] == ["the stage failed: ValueError: no"]
    assert stages["Qwen2.5-VL 3B"]["missing"][0].startswith("it did not fit into its ")
    assert stages["Qwen3-VL 2B"]["figures"][0]["value"] == 0.001
    assert "missing: flash attention: it is for CUDA" in capsys.readouterr().out


def test_a_difference_is_the_largest_and_no_number_is_none() -> None:
    assert difference([1.0, 2.2], [1.0, 2.0]) == pytest.approx(0.1)
    assert difference([math.nan], [1.0]) == math.inf
    assert difference([1.0], [1.0, 2.0]) == math.inf
    assert difference([], []) == math.inf


def test_checks_that_would_not_see_wrong_labels_are_no_checks() -> None:
    assert _control({"wrong labels": [9.9, 9.0], "bf16": [9.0, 9.0]}).value == pytest.approx(0.1)
    with pytest.raises(ContenderError, match="the checks would see nothing"):
        _control({"wrong labels": [9.001], "bf16": [9.0]})
    with pytest.raises(ContenderError, match="could not be run: it did not fit"):
        _control({"wrong labels": OutOfTimeError(), "bf16": [9.0]})


def test_contenders_that_count_other_tokens_are_refused() -> None:
    require_equal_counts({"ours": (40, 300), "TRL": (40, 300)})
    with pytest.raises(UnequalLossError, match=r"TRL has \(41, 300\) tokens"):
        require_equal_counts({"ours": (40, 300), "TRL": (41, 300)})


def test_what_a_way_needs_is_named() -> None:
    assert Way(cuda=True).missing("cpu") == "it is for CUDA"
    assert Way(package="no_such_package").missing("cuda") == "no_such_package is not installed"
    assert Way(setting="no_such_setting").missing("cuda") == "there is no --no_such_setting yet"
    assert Way(setting="packing").missing("cuda") == ""


def weights_in(shape: Shape) -> int:
    """Return how many weights a shape's model has, built on a device without memory; tied ones count once."""
    config = configuration(shape, processor_of(shape).tokenizer)
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_models_have_the_sizes_that_they_are_named_after(name: str) -> None:
    published = {"Gemma3 4B": 4.30e9, "Qwen2.5-VL 3B": 3.75e9, "Qwen3-VL 2B": 2.13e9}
    assert weights_in(PUBLISHED[name]) == pytest.approx(published[name], rel=0.02)
    assert weights_in(tiny(PUBLISHED[name])) < 1e6
