"""Seconds per step and epoch: operations against those that PyTorch counts, padding, packing, and what is not known."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from support.tiny.batches import build_batch, load_plainly
from vlm_lora.backend import DeviceSpec, Precision
from vlm_lora.config.run_config import TuningConfig
from vlm_lora.config.sources import parse
from vlm_lora.memory.run import Subject
from vlm_lora.memory.sample import Rows
from vlm_lora.memory.speed import EFFICIENCY, Compute, Order, TimePlan, computed_tokens, measure, plan_time, row_flops
from vlm_lora.memory.trace import Weight, weights_of
from vlm_lora.model.checkpointing import enable_checkpointing
from vlm_lora.model.families import FAMILIES, family_of
from vlm_lora.model.objective import SupervisedHead, gather_targets
from vlm_lora.model.parts import find_parts
from vlm_lora.model.tuning import apply_tuning
from vlm_lora.report.memory import duration, time_line

TOLERANCE = 0.10
"""Projectors, norms and rotations are not counted."""
FULL = TuningConfig(peft_method="none", freeze_vision=False)


def counted(model: Any, batch: Mapping[str, torch.Tensor]) -> int:
    """Return the operations of a real step by PyTorch's own counter."""
    inputs = dict(batch)
    positions = inputs.pop("supervised_positions")
    targets = gather_targets(inputs.pop("labels"), positions)
    head = SupervisedHead(model, reads=False)
    with FlopCounterMode(display=False) as counter:
        with head.on(positions, targets):
            outputs = model(**inputs)
        head.losses(outputs.logits, targets).sum().backward()
    return int(counter.get_total_flops())


def planned(model: Any, family: Any, batch: Mapping[str, torch.Tensor], *, checkpointing: bool) -> float:
    compute = Compute(
        weights=list(weights_of(model, find_parts(model, family))),
        config=model.config,
        checkpointing=checkpointing,
        fused_attention=False,
    )
    length = batch["input_ids"].shape[1]
    return row_flops(
        compute, tokens=length, width=length, supervised=4, pixels=prod(tuple(batch["pixel_values"].shape))
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tuning", [TuningConfig(), FULL], ids=["LoRA", "full"])
@pytest.mark.parametrize("name", ["gemma3", "qwen2_5_vl", "llava"])
def test_the_operations_of_a_step_are_those_that_pytorch_counts(
    name: str, tuning: TuningConfig, checkpointing: bool, model_folder: Callable[[str], Path]
) -> None:
    processor, model = load_plainly(model_folder(name))
    model.set_attn_implementation("eager")
    family = family_of(model.config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = build_batch(processor)
    length = batch["input_ids"].shape[1]
    batch["labels"] = batch["input_ids"].clamp(min=1)
    batch["supervised_positions"] = torch.arange(length - 5, length - 1)[None]
    tuned = apply_tuning(model, family, tuning).train()
    if checkpointing:
        enable_checkpointing(tuned, family)
    real = counted(tuned, batch)
    found = planned(tuned, family, batch, checkpointing=checkpointing)
    assert found == pytest.approx(real, rel=TOLERANCE)
    other = planned(tuned, family, batch, checkpointing=not checkpointing)
    assert abs(other - real) > abs(found - real), "the control: the other way of checkpointing"


def test_padding_is_what_the_order_leaves() -> None:
    lengths = tuple(range(50, 800, 10))
    random = computed_tokens(lengths, Order(batch_size=8))
    grouped = computed_tokens(lengths, Order(batch_size=8, grouped=True))
    packed = computed_tokens(lengths, Order(batch_size=1, pack_length=2048))
    assert computed_tokens(lengths, Order(batch_size=1)) == (sum(lengths), 0.0)
    assert computed_tokens(lengths, Order(batch_size=8, grouped=None)) == grouped
    equal = [100] * 20
    assert computed_tokens(equal, Order(batch_size=8, grouped=None)) == (2000.0, 0.0)
    assert 0.35 < random[1] < 0.5
    assert grouped[1] < 0.10
    assert packed[1] == pytest.approx(0.02)
    assert packed[0] < grouped[0] < random[0]


def weight(part: str, elements: int, *, trained: bool = False, name: str = "layer.weight") -> Weight:
    return Weight(
        name=name,
        part=part,  # type: ignore[arg-type]
        elements=elements,
        bytes=2 * elements,
        shape=(elements, 1),
        trained=trained,
        adapter=trained,
        quantizable=False,
        layer="",
    )


class Config(SimpleNamespace):
    """A model whose attention is of width 10 in 2 layers, without an image tower of patches."""

    def get_text_config(self) -> Config:
        return self


CONFIG = Config(num_hidden_layers=2, num_attention_heads=2, head_dim=5, hidden_size=10, vocab_size=100)
COMPUTE = Compute(weights=[weight("language", 1000), weight("language", 100, trained=True)], config=CONFIG)
ROWS = Rows(lengths=(10, 10, 10, 10), supervised=2.0, pixels=0.0, total=400)
CARD = DeviceSpec(name="Card", total_bytes=1, fixed_bytes=0, source="a test", flops=1e6, flops_source="a test")
BF16 = Precision(weights="bfloat16")
ROW = 2 * 10 * (1100 * 2 + 100) + 4 * 10 * 10 * 10 * 2 * 0.5 * 3 + 2 * 2 * 1000 * 2
"""By hand: weights, attention, head."""


def plan(order: Order, **changes: Any) -> TimePlan:
    return plan_time(
        changes.get("compute", COMPUTE), changes.get("rows", ROWS), order, changes.get("device", CARD), BF16
    )


def test_a_plan_by_hand() -> None:
    found = plan(Order(batch_size=4, accumulation=2, world_size=2))
    assert found.flops == ROW * 8
    assert found.steps == 400 / (4 * 2 * 2)
    assert found.step_seconds == pytest.approx(ROW * 8 / (EFFICIENCY * 1e6))
    assert found.epoch_seconds == pytest.approx(25 * ROW * 8 / (EFFICIENCY * 1e6))
    assert found.left_out == ("exchange between processes",)


def test_packs_hold_many_rows_and_look_at_all_of_the_pack() -> None:
    packed = plan(Order(batch_size=1, pack_length=100))
    assert packed.steps == pytest.approx(400 / 9.604, abs=1)
    assert packed.flops > plan(Order(batch_size=1)).flops * 9.5


def test_cached_features_take_the_tower_away_and_experts_count_as_they_are_visited() -> None:
    vision = SimpleNamespace(patch_size=2, hidden_size=4, num_hidden_layers=1)
    config = Config(**vars(CONFIG), vision_config=vision)
    rows = replace(ROWS, pixels=120.0)
    seen = replace(COMPUTE, weights=[*COMPUTE.weights, weight("vision", 50)], config=config)
    one = Order(batch_size=1)
    tower = 2 * 10 * 50 + 4 * 10 * 10 * 4 * 1
    assert plan(one, compute=seen, rows=rows).flops == ROW + tower
    cached = plan(one, compute=replace(seen, cached_features=True), rows=rows)
    assert cached.flops == ROW
    assert "the tower run in the first epoch only and not counted" in time_line(cached)
    assert "the tower" not in time_line(plan(one, compute=seen, rows=rows))
    assert plan(one, rows=rows).left_out == ("the vision tower",)
    experts = [weight("language", 1000, name="mlp.experts.up"), weight("language", 100, trained=True)]
    mixed = replace(COMPUTE, weights=experts, config=Config(**vars(CONFIG), num_experts=4, num_experts_per_tok=1))
    assert plan(one, compute=mixed).flops == ROW - 2 * 10 * 750 * 2


@pytest.mark.parametrize(
    ("flags", "static", "reads"),
    [
        ((), False, True),
        (("--cache_vision_features", "off"), False, False),
        (("--num_train_epochs", "1"), False, False),
        (("--num_train_epochs", "1", "--cache_vision_features", "on"), False, True),
        (("--lora_targets", "all"), False, False),
        (("--peft_method", "none", "--freeze_vision", "false"), False, False),
        ((), True, False),
        (("--static_shapes", "false"), True, True),
    ],
)
def test_epochs_read_features_where_a_run_would_keep_them(flags: tuple[str, ...], static: bool, reads: bool) -> None:
    run = parse(flags, environ={})
    nothing: Any = None
    subject = Subject(
        run=run,
        values={"num_train_epochs": 1} if "--num_train_epochs" in flags else {},
        config=nothing,
        family=FAMILIES["gemma3"],
        encoder=nothing,
        collator=nothing,
        data=nothing,
        image_size="",
    )
    backend: Any = SimpleNamespace(traits=SimpleNamespace(static_shapes=static))
    assert subject.reads_features(backend) is reads


def test_what_is_not_known_is_said_and_nothing_is_made_up() -> None:
    untold = plan(Order(batch_size=1), device=replace(CARD, flops=None))
    assert untold.step_seconds is None
    assert untold.epoch_seconds is None
    assert time_line(untold).startswith("Time: unknown: nothing is tabled for Card (")
    wide = plan_time(COMPUTE, ROWS, Order(batch_size=1), CARD, Precision(weights="float32"))
    assert wide.rate is None
    assumed = plan(Order(batch_size=1), rows=replace(ROWS, total=None))
    assert assumed.steps is None
    assert "an epoch" not in time_line(assumed)


def test_this_machine_is_measured() -> None:
    here = replace(CARD, flops=None, is_cpu=True, is_here=True)
    found = plan_time(COMPUTE, ROWS, Order(batch_size=1), here, Precision(weights="float32"))
    assert found.rate == pytest.approx(0.6 * measure("float32"))
    line = time_line(found)
    assert line.startswith("Time, an estimate within a factor of 2: ")
    assert "a matrix product of this machine in float32" in line


def test_times_are_written_in_words() -> None:
    assert [duration(each) for each in (0.0123, 3.4, 310, 25600)] == ["12.3 ms", "3.4 s", "5.17 min", "7.11 h"]
