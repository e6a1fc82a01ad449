"""The benchmarks' contenders, each through its own real loop, start at one loss; one with wrong labels is refused."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.compare import UnequalLossError, require_equal_losses
from benchmarks.contenders import EPOCH, WRONG_LABELS, Contender, Job, StepFigures, Turns, run
from benchmarks.folders import build_folder, write_rows
from benchmarks.shapes import SHAPES, Shape

SMALL: dict[str, Shape] = {
    name: replace(
        shape,
        hidden=32,
        layers=1,
        vocabulary=1,
        tower_hidden=32,
        tower_layers=2,
        side=56,
        head_dim=16,
        tower_head_dim=16,
    )
    for name, shape in SHAPES.items()
}


def first_steps(kind: str, job: Job, wanted: int = 1) -> list[StepFigures]:
    """Return the figures of a contender's first turn."""
    turns: list[list[StepFigures]] = []

    def next_turn(done: list[StepFigures]) -> int:
        turns.append(done)
        return wanted if len(turns) == 1 else 0

    run(Contender(name=kind, kind=kind), job, Turns(next_turn))
    return turns[1]


@pytest.mark.filterwarnings("ignore")  # other tools' own
@pytest.mark.parametrize("name", SMALL)
def test_all_contenders_start_at_one_loss(name: str, tmp_path: Path) -> None:
    shape = SMALL[name]
    data = write_rows(tmp_path / "rows", [(row, 6 + 5 * row, 3 + row) for row in range(4)], side=shape.side)
    job = Job(model=build_folder(shape, tmp_path / "model"), data=data, output=tmp_path / "out", batch_size=2)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    ours = first_steps("ours", job, EPOCH)
    assert len(ours) == 2
    others = {kind: first_steps(kind, job)[0] for kind in ("trl", "plain")}
    require_equal_losses({"ours": ours[0].loss, **{kind: step.loss for kind, step in others.items()}})
    assert {step.tokens for step in others.values()} == {ours[0].tokens}
    assert {step.supervised for step in others.values()} == {ours[0].supervised}
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    with pytest.raises(UnequalLossError, match=WRONG_LABELS):
        require_equal_losses({"ours": ours[0].loss, WRONG_LABELS: first_steps(WRONG_LABELS, job)[0].loss})
