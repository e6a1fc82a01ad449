"""The benchmarks' own arithmetic: who is refused, what a turn is, medians, the file of results and its page."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import head_loss, page
from benchmarks.__main__ import chosen_stages
from benchmarks.compare import Comparison, UnequalLossError, mean_loss, require_equal_losses
from benchmarks.contenders import EPOCH, StepFigures, StopTrainingError, Turns
from benchmarks.figures import Figure, Results, spread
from benchmarks.stages import Context, _module, lengths_of
from vlm_lora.model.objective import SupervisedHead

STEP = StepFigures(loss=2.0, cpu=1.0, fetching=0.5, wall=2.0, tokens=10, supervised=4)


def test_contenders_with_another_first_loss_are_refused() -> None:
    require_equal_losses({"ours": 9.01045, "TRL": 9.01046, "plain": 9.01044})
    for other in (9.02, math.nan, 0.0):
        with pytest.raises(UnequalLossError, match="TRL starts at a loss of"):
            require_equal_losses({"ours": 9.01045, "plain": 9.01045, "TRL": other})


class Loop:
    """A training loop of epochs of three steps; says what it was told to do."""

    def __init__(self, wanted: list[int]) -> None:
        self.reported: list[list[float]] = []
        self._wanted = iter(wanted)
        self._turns = Turns(self._next)

    def _next(self, done: list[StepFigures]) -> int:
        self.reported.append([step.loss for step in done])
        return next(self._wanted)

    def run(self) -> None:
        for step in range(100):
            self._turns.begin()
            self._turns._loss = float(step)
            self._turns.end()
            if step % 3 == 2:
                self._turns.epoch_ended()


def test_a_loop_takes_the_steps_of_its_turn_and_waits() -> None:
    loop = Loop([1, 2, 4, 0])
    with pytest.raises(StopTrainingError):
        loop.run()
    assert loop.reported == [[], [0.0], [1.0, 2.0], [3.0, 4.0, 5.0, 6.0]]


def test_a_turn_of_an_epoch_ends_with_it() -> None:
    loop = Loop([EPOCH, EPOCH, 1, EPOCH, 0])
    with pytest.raises(StopTrainingError):
        loop.run()
    assert loop.reported == [[], [0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0], [7.0, 8.0]]


def test_ratios_are_of_each_round() -> None:
    rounds = {"ours": [[STEP], [STEP, STEP]], "TRL": [[replace(STEP, cpu=2.0, fetching=0.0)], [replace(STEP, cpu=1.0)]]}
    result = Comparison(losses={}, rounds=rounds)
    assert result.ratios("ours", "TRL") == [0.5, 2.0]
    assert result.ratios("ours", "TRL", fetching=True) == [0.75, 2.0]
    assert result.ratios("ours", "TRL", wall=True) == [1.0, 2.0]
    assert result.tokens("ours") == 30


def test_the_loss_of_an_epoch_counts_tokens_not_batches() -> None:
    assert mean_loss([STEP, replace(STEP, loss=5.0, supervised=8)]) == pytest.approx(4.0)


def test_a_figure_is_the_median_with_quartiles_and_knows_its_goal() -> None:
    figure = spread("step", [0.5, 0.9, 0.7, 0.6, 0.8], goal=0.7)
    assert (figure.low, figure.value, figure.high, figure.met) == (0.6, 0.7, 0.8, True)
    assert replace(figure, goal=0.69).met is False
    assert replace(figure, goal=None).met is None
    assert "goal 0.69: NOT met" in replace(figure, goal=0.69).line()


def test_stages_are_added_to_a_file_and_the_page_is_made_of_it(tmp_path: Path) -> None:
    path = tmp_path / "results" / "cpu.json"
    Results(path, {"rounds": 15}).add("peaks", [Figure(name="peak", value=0.5, goal=0.4)], [], 1.0)
    missed = ["warm: there is no --cache yet"]
    Results(path, {"rounds": 3}).add("steps", [spread("a / b", [0.5, 0.6], goal=0.6, note="kept")], missed, 2.0)
    assert [figure.name for figure in Results(path, {}).figures("peaks")] == ["peak"]
    results = json.loads(path.read_text(encoding="utf-8"))
    text = page.render(results)
    assert "| peak | 0.5 |  | 0.4 | not met |" in text
    assert "| a / b (kept) | 0.55 | 0.525 to 0.575 | 0.6 | met |" in text
    assert "- Not measured: warm: there is no --cache yet" in text
    assert results["machine"]["processor"] in text
    assert f"torch {results['versions']['torch']}" in text


def test_a_part_of_the_page_is_replaced_and_the_rest_stays() -> None:
    before = "a\n<!-- cpu: begin -->\nold\n<!-- cpu: end -->\nb\n"
    assert page.fill(before, "cpu", "new") == before.replace("old", "new")
    with pytest.raises(ValueError, match="gpu: begin"):
        page.fill(before, "gpu", "new")


def test_the_page_of_the_repository_has_every_part() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    for part in page.PARTS:
        assert "a new text" in page.fill(text, part, "a new text")


def test_stages_are_chosen_by_name_and_the_control_runs_with_any() -> None:
    assert chosen_stages("peaks") == ["control", "peaks"]
    assert chosen_stages(None)[0] == "control"
    with pytest.raises(SystemExit, match="--stages peek: allowed are control, "):
        chosen_stages("peaks,peek")


def test_a_stage_whose_script_is_not_there_is_named(tmp_path: Path) -> None:
    found = _module("no_such_script", "Nothing")(Context(place=tmp_path))
    assert found.figures == []
    assert found.missing == ["Nothing: benchmarks/no_such_script.py is not there yet"]


@pytest.mark.parametrize("trained", [True, False])
def test_head_and_loss_are_equal_both_ways_or_nothing_is_timed(
    *, trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = head_loss.Size(rows=2, answer=3, columns=64, hidden=8)
    assert head_loss.difference(size, trained=trained) <= 1e-6
    losses = SupervisedHead.losses
    monkeypatch.setattr(SupervisedHead, "losses", lambda *args: losses(*args) * 1.0001)
    with pytest.raises(UnequalLossError, match="Head and loss in chunks"):
        head_loss.difference(size, trained=trained)


def test_row_lengths_are_drawn_as_said() -> None:
    uniform, short = lengths_of("uniform", 500), lengths_of("mostly short", 500)
    assert min(uniform + short) >= 50
    assert max(uniform + short) <= 800
    assert 0.7 < sum(length <= 200 for length in short) / 500 < 0.9
    assert 0.1 < sum(length <= 200 for length in uniform) / 500 < 0.3
