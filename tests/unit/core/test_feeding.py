"""Which order of rows a run chooses, takes over from its checkpoint, or refuses."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from vlm_lora.batching.row_table import RowRecord, RowTable, RowTableBuilder, SampleRecord
from vlm_lora.batching.shapes import RowShape
from vlm_lora.config.run_config import RunConfig
from vlm_lora.data.dataset import Splits
from vlm_lora.errors import ConfigError
from vlm_lora.training.feeding.strategy import Feeding, Strategy, check_known, choose_feeding, strategy_of

VARIED = [50, 800, 60, 700, 55, 750, 65, 650]
EVEN = [100, 104, 101, 103, 100, 102, 104, 101]


def table_of(lengths: list[int]) -> RowTable:
    builder = RowTableBuilder(name="train", layout="messages")
    for length in lengths:
        shape = RowShape(media=(), length=length, supervised=1)
        builder.add(RowRecord(samples=(SampleRecord(shape=shape),)))
    return builder.table()


def choose(lengths: list[int], strategy: Strategy | None = None, **changes: Any) -> Feeding:
    given = {"known": True, "groups": None, "tables": {"train": table_of(lengths)}, "stream": None, **changes}
    arguments = SimpleNamespace(
        train_batch_size=given.pop("batch", 2),
        world_size=1,
        seed=1,
        data_seed=None,
        dataloader_drop_last=False,
        gradient_accumulation_steps=1,
    )
    rows: Any = range(len(lengths))
    splits = Splits(train=rows, validation=None, explanation="", stream=given.pop("stream"))
    return choose_feeding(strategy, arguments, splits, given.pop("tables"), **given)


def test_rows_are_grouped_where_that_saves_a_tenth_and_the_log_says_what(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        feeding = choose(VARIED)
    assert feeding.strategy is Strategy.GROUPED
    assert feeding.lengths is not None
    assert feeding.lengths.at(0).tolist() == VARIED
    (said,) = caplog.messages
    # Grouped, the batches are 800+750, 700+650, 65+60 and 55+50 tokens: 110 of 3,240 are padding.
    assert said.startswith("Rows of like length share a batch: 3.4 % of the computed tokens are padding, ")
    assert "% in random batches. --train_sampling_strategy random shuffles all rows." in said


@pytest.mark.parametrize(
    ("lengths", "changes"),
    [
        (EVEN, {}),
        (VARIED, {"batch": 1}),
        (VARIED, {"groups": [[0, 1, 2, 3], [4, 5, 6, 7]]}),
        (VARIED, {"known": False}),
        (VARIED, {"tables": {}}),
        (VARIED, {"stream": object()}),
        (VARIED, {"strategy": Strategy.RANDOM}),
        (VARIED, {"strategy": Strategy.SEQUENTIAL}),
    ],
    ids=[
        "saves little",
        "batches of one",
        "planned shapes",
        "unknown draws",
        "not read",
        "stream",
        "random",
        "in order",
    ],
)
def test_otherwise_they_are_not(lengths: list[int], changes: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        feeding = choose(lengths, **changes)
    assert feeding == Feeding(strategy=changes.get("strategy") or Strategy.RANDOM)
    assert caplog.messages == []


@pytest.mark.parametrize("changes", [{}, {"batch": 1}, {"groups": [[0, 1, 2, 3], [4, 5, 6, 7]]}])
def test_who_asks_for_it_gets_it(changes: dict[str, Any]) -> None:
    assert choose(EVEN, Strategy.GROUPED, **changes).strategy is Strategy.GROUPED


def test_a_run_takes_over_its_checkpoints_order_unless_it_names_one() -> None:
    assert strategy_of(RunConfig()) is None
    assert strategy_of(RunConfig(), "random") is Strategy.RANDOM
    named = RunConfig(raw={"train_sampling_strategy": "group_by_length"})
    assert strategy_of(named, "random") is Strategy.GROUPED


def test_lengths_that_nobody_knows_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"--train_sampling_strategy group_by_length.*Type --num_train_epochs N"):
        check_known(Strategy.GROUPED, known=False)
    check_known(Strategy.GROUPED, known=True)
    check_known(None, known=False)
