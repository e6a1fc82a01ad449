"""Data that is small beside one step, and settings that a run which trains nothing leaves out."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from vlm_lora.config.sources import parse
from vlm_lora.errors import ConfigError
from vlm_lora.training.arguments import check_arguments
from vlm_lora.training.feeding.whole_steps import check_first_step, few_packs
from vlm_lora.training.inference_only import say_left_out


def arguments(batch: int, *, processes: int = 1, accumulated: int = 1, drops: bool = True) -> Any:
    return SimpleNamespace(
        per_device_train_batch_size=batch,
        train_batch_size=batch,
        world_size=processes,
        gradient_accumulation_steps=accumulated,
        dataloader_drop_last=drops,
    )


@pytest.mark.parametrize(
    ("sizes", "batch", "processes", "said"),
    [
        (
            [2],
            8,
            1,
            "2 packs, a step needs 8 (--per_device_train_batch_size 8, 1 process), so none would be made. Type ",
        ),
        ([2], 8, 1, "Type --per_device_train_batch_size 2 or --dataloader_drop_last false."),
        ([1], 2, 2, "1 pack, a step needs 4 (--per_device_train_batch_size 2, 2 processes), so none would be made."),
        ([1], 2, 2, "made. Type --dataloader_drop_last false."),
        ([5], 4, 2, "Type --per_device_train_batch_size 2 or"),
        ([3, 7], 8, 1, "7 packs of one shape at most, a step needs 8"),
    ],
)
def test_no_whole_step_is_refused(sizes: list[int], batch: int, processes: int, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_first_step(sizes, arguments(batch, processes=processes), unit="pack")
    assert said in str(caught.value)


def test_a_step_that_is_whole_or_filled_up_is_not_refused() -> None:
    check_first_step([8], arguments(8), unit="row")
    check_first_step([3, 8], arguments(8), unit="row")
    check_first_step([2], arguments(8, drops=False), unit="row")
    with pytest.raises(ConfigError, match="7 rows, a step needs 8"):
        check_first_step([7], arguments(8), unit="row")


@pytest.mark.parametrize(
    ("packs", "rows", "given", "said"),
    [
        (
            5,
            20,
            arguments(8, drops=False),
            "one update of 5 packs, 3 filler packs beside them: --per_device_train_batch",
        ),
        (5, 20, arguments(8, drops=False), "For more updates type --per_device_train_batch_size 2."),
        (
            8,
            9,
            arguments(8),
            "one update of 8 packs: --per_device_train_batch_size 8 counts packs, not rows. For more ",
        ),
        (8, 9, arguments(8), "type --per_device_train_batch_size 7."),
        (3, 9, arguments(1, accumulated=4), "--per_device_train_batch_size 1 --gradient_accumulation_steps 2."),
        (
            1,
            2,
            arguments(8, drops=False),
            "one update of 1 pack, 7 filler packs beside them: --per_device_train_batch_s",
        ),
        (1, 2, arguments(8, drops=False), "Type --per_device_train_batch_size 1; for more updates, a shorter --pack_"),
        (6, 60, arguments(4, processes=2), "type --per_device_train_batch_size 1."),
    ],
)
def test_one_update_an_epoch_is_told_with_what_to_type(packs: int, rows: int, given: Any, said: str) -> None:
    assert said in (few_packs(packs, rows, given) or "")


def test_more_updates_or_a_single_pack_by_itself_are_nothing_to_tell() -> None:
    assert few_packs(9, 20, arguments(8)) is None
    assert few_packs(2, 20, arguments(1)) is None
    assert few_packs(1, 20, arguments(1)) is None


def test_what_arranges_training_rows_is_named_where_nothing_trains(caplog: pytest.LogCaptureFixture) -> None:
    words = ["--packing", "true", "--pack_length", "300", "--train_sampling_strategy", "group_by_length"]
    with caplog.at_level(logging.WARNING):
        say_left_out(parse(words, environ={}))
    assert caplog.messages == [
        "For training alone, so without effect here: --packing, --pack_length, --train_sampling_strategy. Evaluation "
        "takes row by row."
    ]
    caplog.clear()
    say_left_out(parse(["--packing", "false", "--train_sampling_strategy", "random"], environ={}))
    assert caplog.messages == []


def test_a_column_of_lengths_is_refused() -> None:
    check_arguments({"length_column_name": "length"})
    with pytest.raises(ConfigError, match="--length_column_name tokens cannot be used: how long rows are is known"):
        check_arguments({"length_column_name": "tokens"})
