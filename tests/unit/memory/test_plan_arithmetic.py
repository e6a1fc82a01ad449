"""From a step to a device: ZeRO, offload, accumulation, optimizers, quantized weights, on numbers worked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vlm_lora.backend import DeviceSpec
from vlm_lora.config.run_config import ModelConfig
from vlm_lora.engines.sharding import Sharding, deepspeed_word, read_sharding
from vlm_lora.errors import ConfigError
from vlm_lora.memory.ledger import BACKWARD, BATCH, LANGUAGE, LOGITS, VISION, Moment
from vlm_lora.memory.optimizers import OPTIMIZERS
from vlm_lora.memory.plan import NF4_BITS, NF4_DOUBLE_BITS, Layout, MemoryPlan, bits_of, plan_memory
from vlm_lora.memory.trace import StepTrace, Weight

DEVICE = DeviceSpec(name="Card", total_bytes=10_000_000, fixed_bytes=7, source="a test")


def weight(name: str, shape: tuple[int, ...], *, width: int = 2, **facts: object) -> Weight:
    elements = 1
    for side in shape:
        elements *= side
    values: dict[str, object] = {"part": "language", "trained": False, "adapter": False, "quantizable": False}
    values |= {"layer": "", **facts}
    return Weight(name=name, shape=shape, elements=elements, bytes=elements * width, **values)  # type: ignore[arg-type]


BASE = weight("layers.0.up.weight", (100, 1000), quantizable=True, layer="layers.0")
ADAPTER = weight("layers.0.up.lora_A", (100, 100), width=4, trained=True, adapter=True, layer="layers.0")


def moment(gradients: int, activations: int, backward: int = 0) -> Moment:
    passing = {LANGUAGE: activations, VISION: 0, LOGITS: 0, BACKWARD: backward, BATCH: 10}
    return Moment(gradients=gradients, passing=passing)


TRACE = StepTrace(
    weights=(BASE, ADAPTER),
    buffer_bytes=0,
    batch_bytes=10,
    moments=(moment(40_000, 1_000), moment(0, 30_000)),
)


def plan(trace: StepTrace = TRACE, **settings: object) -> MemoryPlan:
    layout = Layout(**{"optimizer": "adamw_torch_fused", **settings})  # type: ignore[arg-type]
    return plan_memory(trace, layout, DEVICE, hidden_size=10)


def test_one_device_holds_everything_at_the_highest_moment() -> None:
    found = plan()
    assert dict(found.items) == {
        "weights": 200_000,
        "adapter": 40_000,
        "gradients": 40_000,
        "optimizer": 80_000,
        "activations": 1_000,
        "vision tower": 0,
        "logits": 0,
        "backward": 0,
        "batch": 10,
        "communication": 0,
        "overhead": 7,
    }
    assert found.total == sum(found.items.values())
    assert found.host_bytes == 0


def test_accumulated_gradients_are_there_before_the_forward_pass() -> None:
    found = plan(accumulation=2)
    assert (found.items["gradients"], found.items["activations"]) == (40_000, 30_000)
    assert found.items["backward"] == 40_000  # the new gradient next to the sum
    assert found.items["batch"] == 20


def test_data_parallel_buckets_are_a_second_copy_of_the_gradients() -> None:
    assert plan(world_size=4).items["communication"] == 40_000


@pytest.mark.parametrize(
    ("word", "weights", "gradients", "optimizer", "host"),
    [
        # optimizer: 8 bytes a trained weight and 4 for DeepSpeed's copy, 120,000 in all
        ("zero1", 200_000, 40_000, 30_000, 0),
        ("zero2", 200_000, 0, 30_000, 0),  # a quarter of the gradients is less than the forward's activations
        ("zero2_offload", 200_000, 0, 0, 30_000),
        ("zero3", 50_000, 0, 30_000, 0),
        ("zero3_offload_optimizer", 50_000, 0, 0, 30_000),
        ("zero3_offload", 0, 0, 0, 90_000),
    ],
)
def test_zero_divides_by_stage(word: str, weights: int, gradients: int, optimizer: int, host: int) -> None:
    found = plan(world_size=4, sharding=deepspeed_word(word))
    assert (found.items["weights"], found.items["gradients"]) == (weights, gradients)
    assert (found.items["optimizer"], found.host_bytes) == (optimizer, host)


def test_stage_3_gathers_a_layer_and_its_buffer() -> None:
    found = plan(world_size=4, sharding=deepspeed_word("zero3"))
    assert found.items["communication"] == 240_000 + 10 * 10 * 4


def test_quantized_weights_are_counted_in_bits_and_unpacked_one_at_a_time() -> None:
    found = plan(weight_bits=NF4_DOUBLE_BITS)
    # 4 bits each; one byte for 64; four bytes for 64 * 256
    assert found.items["weights"] == round(50_000 + 100_000 / 64 + 4 * 100_000 / (64 * 256))
    assert found.items["communication"] == 200_000
    assert plan(weight_bits=NF4_BITS).items["weights"] == 50_000 + 4 * 100_000 // 64


@pytest.mark.parametrize(("double", "bits"), [(False, NF4_BITS), (True, NF4_DOUBLE_BITS)])
def test_bits_follow_the_scales(double: bool, bits: float) -> None:
    assert bits_of(ModelConfig(load_in_4bit=True, bnb_4bit_use_double_quant=double)) == bits


def test_an_update_that_needs_more_than_the_step_is_the_peak() -> None:
    small = replace(TRACE, moments=(moment(0, 10),))
    found = plan(small, optimizer="adamw_torch")
    assert (found.items["gradients"], found.items["optimizer"]) == (40_000, 80_000 + 40_000)


@pytest.mark.parametrize(
    ("name", "bytes_"),
    [
        ("adamw_torch", 80_000),
        ("adamw_8bit", 2 * (10_000 + 4 * 40)),
        ("adafactor", 4 * 200),
        ("sgd", 0),
        ("lion_32bit", 40_000),
    ],
)
def test_optimizer_states(name: str, bytes_: int) -> None:
    assert OPTIMIZERS[name].state((100, 100)) == bytes_


def test_small_tensors_keep_whole_states_in_8_bits() -> None:
    assert OPTIMIZERS["adamw_8bit"].state((100,)) == 800


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not know what it keeps"):
        plan(optimizer="galore_adamw")


def test_verdict_says_when_it_is_close() -> None:
    found = plan()
    room = DeviceSpec(name="a", total_bytes=2 * found.total, fixed_bytes=0, source="")
    close, less = replace(room, total_bytes=found.total + 1), replace(room, total_bytes=found.total - 1)
    assert (found.fits(room), found.is_tight(room)) == (True, False)
    assert (found.fits(close), found.is_tight(close)) == (True, True)
    assert (found.fits(less), found.is_tight(less)) == (False, False)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, Sharding()),
        ({"deepspeed": "zero2"}, Sharding(engine="deepspeed", stage=2)),
        (
            {"deepspeed": {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}},
            Sharding(engine="deepspeed", stage=3, offload_weights=True, bucket_elements=500_000_000),
        ),
        ({"fsdp": "full_shard auto_wrap"}, Sharding(engine="fsdp", stage=3)),
        ({"fsdp": "shard_grad_op"}, Sharding(engine="fsdp", stage=2)),
    ],
)
def test_sharding_is_read_from_the_runs_settings(values: dict[str, object], expected: Sharding) -> None:
    assert read_sharding(values) == expected


def test_a_word_that_is_no_file_lists_the_words() -> None:
    with pytest.raises(ConfigError, match="zero3_offload"):
        read_sharding({"deepspeed": "zero4"})
