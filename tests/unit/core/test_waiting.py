"""The time that training waits for its data, and how many loader workers its rows can use."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from vlm_lora.batching.collator import Fed
from vlm_lora.training.feeding.pace import Pace, padding_of
from vlm_lora.training.feeding.waiting import DataWait
from vlm_lora.training.feeding.workers import fit_workers


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def slow(clock: Clock, seconds: list[float]) -> Iterator[int]:
    for number, each in enumerate(seconds):
        clock.now += each
        yield number


def test_seconds_and_share_of_the_time_since_the_last_line() -> None:
    clock = Clock()
    wait = DataWait(clock)
    assert wait.share() is None, "nothing began"
    batches = slow(clock, [3.0, 1.0, 0.0])
    for expected, step in ((0, 5.0), (1, 1.0)):
        assert next(wait.over(batches)) == expected  # a step of one batch, as the trainer takes them
        clock.now += step
    assert wait.seconds == 4.0
    assert wait.share() == pytest.approx(0.4)
    assert list(wait.over(batches)) == [2]
    clock.now += 2.0
    assert wait.share() == 0.0, "of the time since the last line alone"
    assert wait.share() is None
    assert wait.seconds == 4.0


def test_the_wait_for_a_batch_that_fails_counts_too() -> None:
    clock = Clock()
    wait = DataWait(clock)

    def broken() -> Iterator[int]:
        clock.now += 2.0
        raise OSError("gone")
        yield 0

    with pytest.raises(OSError, match="gone"):
        next(wait.over(broken()))
    assert wait.seconds == 2.0


def test_pace_is_that_of_the_steps_alone() -> None:
    clock = Clock()
    pace = Pace(lambda: {"memory_peak_bytes": 7}, clock)
    fed = Fed(rows=0, tokens=0)
    assert pace.since_last(fed, 1) == {}, "nothing began"
    for _ in range(2):
        pace.step_begins()
        clock.now += 2.0
        fed += Fed(rows=4, tokens=30, computed=40)
    expected = {"rows_per_second": 4.0, "tokens_per_second": 30.0, "padding": 0.25, "memory_peak_bytes": 7}
    assert pace.since_last(fed, 2) == expected, "of both processes"
    clock.now += 100.0  # an evaluation
    pace.step_begins()
    clock.now += 1.0
    fed += Fed(rows=1, tokens=9, computed=9)
    assert pace.since_last(fed, 1)["rows_per_second"] == 1.0
    pace.step_begins()
    assert pace.since_last(fed, 1) == {"memory_peak_bytes": 7}, "no time, and no rows"


def test_padding_of_nothing_is_not_known() -> None:
    assert padding_of(Fed(rows=0, tokens=0)) == {}
    assert padding_of(Fed(rows=3, tokens=30, computed=40)) == {"train_padding_share": 0.25}


@pytest.mark.parametrize(
    ("values", "train", "validation", "workers"),
    [
        ({}, 100, 0, 4),
        ({}, 8, 0, 1),
        ({}, 4, 0, 0),
        ({}, 4, 12, 2),
        ({}, 0, 0, 0),
        ({"dataloader_num_workers": 4}, 4, 0, 4),
    ],
)
def test_no_more_workers_than_batches_to_make_ahead(
    values: dict[str, Any], train: int, validation: int, workers: int
) -> None:
    arguments = SimpleNamespace(
        train_batch_size=2,
        eval_batch_size=2,
        world_size=2,
        dataloader_prefetch_factor=None,
        dataloader_num_workers=4,
    )
    fit_workers(arguments, values, train=train, validation=validation)
    assert arguments.dataloader_num_workers == workers
