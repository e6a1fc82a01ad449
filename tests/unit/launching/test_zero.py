"""DeepSpeed's configurations by name and by file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from vlm_lora.engines.zero import (
    STAGES,
    offloads_optimizer,
    read_zero,
    ready_made,
    refuse_unchecked_updates,
    zero_settings,
    zero_stage,
)
from vlm_lora.errors import ConfigError

SHIPPED = Path(__file__).parents[3] / "launchers" / "deepspeed"


def test_a_file_is_shipped_for_every_name() -> None:
    assert {path.stem for path in SHIPPED.glob("*.json")} == set(STAGES)


@pytest.mark.parametrize("word", STAGES)
def test_the_shipped_file_says_what_the_name_says(word: str) -> None:
    path = SHIPPED / f"{word}.json"
    assert json.loads(path.read_text(encoding="utf-8")) == ready_made(word) == read_zero(word) == read_zero(str(path))
    assert zero_stage(ready_made(word)) == int(word[4])
    assert offloads_optimizer(ready_made(word)) is ("offload" in word)


@pytest.mark.parametrize(("bf16", "fp16"), [(False, False), (True, False), (False, True)])
def test_precision_follows_the_run(bf16: bool, fp16: bool) -> None:
    """DeepSpeed takes the text "auto" for true."""
    settings = zero_settings("zero3", bf16=bf16, fp16=fp16)
    assert (settings["bf16"]["enabled"], settings["fp16"]["enabled"]) == (bf16, fp16)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("zero4", "Did you mean 'zero"),
        ("no/such/file.json", "zero3_offload"),
        ({"bf16": {"enabled": True}}, "--bf16 false"),
        (
            {"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": False}},
            "would save empty weights",
        ),
    ],
)
def test_what_cannot_be_honoured(given: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        zero_settings(given, bf16=False)


def test_a_file_that_holds_no_object(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="one JSON object"):
        read_zero(str(path))


def test_stage_3_from_a_users_file_is_saved_whole() -> None:
    """A file that is silent about it would give empty weights."""
    settings = zero_settings({"zero_optimization": {"stage": 3}}, bf16=False)
    assert settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True


def test_the_given_mapping_is_not_changed() -> None:
    given: dict[str, Any] = {"zero_optimization": {"stage": 3}}
    zero_settings(given, bf16=True)
    assert given == {"zero_optimization": {"stage": 3}}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "stage 0 in fp32 looks at no gradient"),
        ({"bf16": {"enabled": True}}, None),
        ({"zero_optimization": {"stage": 2}}, None),
        ({"zero_optimization": {"stage": 2, "compute_grad_norm": False}}, '"compute_grad_norm": false'),
        (
            {"zero_optimization": {"stage": 1}, "bf16": {"enabled": True, "check_grad_overflow": False}},
            '"check_grad_overflow": false under "bf16"',
        ),
        ({"zero_optimization": {"stage": 3}, "bf16": {"enabled": True, "check_grad_overflow": False}}, None),
        ({"zero_optimization": {"stage": 1}, "fp16": {"enabled": True}}, None),
    ],
)
def test_steps_are_skipped_where_deepspeed_looks_at_gradients_alone(settings: dict[str, Any], said: str | None) -> None:
    if said is None:
        refuse_unchecked_updates(settings)
    else:
        with pytest.raises(ConfigError, match=re.escape(said)):
            refuse_unchecked_updates(settings)
