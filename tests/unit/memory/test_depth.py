"""A shallow step stands for a deep one to the byte, at every moment; where it cannot, the deep one is run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import pytest
import torch

from support.tiny import build_processor
from support.tiny.batches import build_batch
from support.tiny.deep import build_deep_configuration
from vlm_lora.backend import Precision
from vlm_lora.compat import IS_5
from vlm_lora.config.run_config import TuningConfig
from vlm_lora.memory import depth
from vlm_lora.memory.depth import BACKWARD, FORWARD, Cut, extend
from vlm_lora.memory.ledger import GRADIENTS, LANGUAGE, PASSING, Ledger
from vlm_lora.memory.trace import Step, StepTrace, trace_step
from vlm_lora.model.families import family_of

LAYERS = 12
FEWER = 8
"""Where every layer is like the others, these show it too."""
FULL = TuningConfig(peft_method="none", freeze_vision=False)
HALF = Precision(weights="bfloat16", autocast="bfloat16")
SETTINGS: Mapping[str, tuple[TuningConfig, bool, Precision]] = {
    "lora": (TuningConfig(), False, Precision(weights="float32")),
    "lora, checkpointing, bf16": (TuningConfig(), True, HALF),
    "full": (FULL, False, Precision(weights="float32")),
    "full, checkpointing": (FULL, True, Precision(weights="float32")),
}
# Sliding and whole attention, three axes of positions, none of these, layers that get images, linear attention.
RUN = {"gemma3": 6, "qwen2_5_vl": 4, "llava": 4, "qwen3_vl": 7, "qwen3_5": 6, "mllama": 9}
"""How many of the layers are run."""
LAYERS_OF = {"llava": FEWER, "qwen2_5_vl": FEWER}
WHOLE = [("mllama", "full"), ("mllama", "full, checkpointing")]
"""The gradient of the images' features is there from the last layer on that looks at them: the growth is uneven."""


def step_of(name: str, setting: str, *, whole: bool) -> StepTrace:
    processor = build_processor(name)
    config = build_deep_configuration(name, processor.tokenizer, layers=LAYERS_OF.get(name, LAYERS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = build_batch(processor)
    length = batch["input_ids"].shape[1]
    batch["labels"] = batch["input_ids"].clamp(min=1)
    batch["supervised_positions"] = torch.arange(length - 5, length - 1)[None]
    tuning, checkpointing, precision = SETTINGS[setting]
    step = Step(tuning=tuning, checkpointing=checkpointing, precision=precision, attention=None, fused_attention=True)
    return trace_step(step, config=config, family=family_of(config), batch=batch, trust_remote_code=False, whole=whole)


CHECKPOINTED = "lora, checkpointing, bf16"
BOTH_WAYS = (CHECKPOINTED, "full")
# Every setting for one family, what its layers make differ for the others; Gaudi's stack runs the same code of ours.
DEEP = [
    *(("llava", setting) for setting in (SETTINGS if IS_5 else BOTH_WAYS)),
    *([(name, CHECKPOINTED) for name in RUN if name not in ("llava", "qwen2_5_vl")] if IS_5 else []),
    *([("qwen2_5_vl", "full"), *WHOLE] if IS_5 else []),
]


@pytest.mark.parametrize(("name", "setting"), DEEP)
def test_a_shallow_step_has_every_moment_of_the_deep_one(name: str, setting: str) -> None:
    whole, extended = step_of(name, setting, whole=True), step_of(name, setting, whole=False)
    assert whole.layers_run == LAYERS_OF.get(name, LAYERS)
    assert extended.layers_run == (LAYERS if (name, setting) in WHOLE else RUN[name])
    assert extended.moments == whole.moments
    assert extended.weights == whole.weights
    assert (extended.batch_bytes, extended.buffer_bytes) == (whole.batch_bytes, whole.buffer_bytes)


@pytest.mark.parametrize("name", ["gemma3n", "gemma4"] if IS_5 else ["gemma3n"])
def test_layers_that_do_not_repeat_are_all_run(name: str) -> None:
    """The last ones borrow keys and values."""
    assert step_of(name, "full", whole=False).layers_run == LAYERS


def test_a_wrong_growth_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 bytes a layer are noticed: what the comparison above is worth."""
    whole = step_of("llava", "lora", whole=True)
    right = depth._growth

    def wrong(ledger: Ledger, stage: str, cut: Cut) -> Mapping[str, int] | None:
        found = right(ledger, stage, cut)
        return found and {**found, LANGUAGE: found[LANGUAGE] + 64}

    monkeypatch.setattr(depth, "_growth", wrong)
    extended = step_of("llava", "lora", whole=False)
    assert extended.layers_run < whole.layers_run
    assert extended.moments != whole.moments


CUT = Cut(config=None, layers=5, period=1, missing=3, first=1)


def ledger_of(kept: list[int], rise: list[int]) -> Ledger:
    """Return the ledger of five layers: bytes kept by each, and what each makes for a moment."""
    ledger = Ledger()
    alive: dict[int, list[torch.Tensor]] = {}

    def make(size: int) -> torch.Tensor:
        tensor = torch.empty(size, dtype=torch.uint8)
        ledger.add(tensor)
        return tensor

    with ledger.labelled(LANGUAGE):
        for layer in range(5):
            ledger.begin((FORWARD, layer))
            make(rise[layer])
            alive[layer] = [make(kept[layer])]
        for layer in reversed(range(5)):
            ledger.begin((BACKWARD, layer))
            gradient = make(10)
            ledger.move(gradient, GRADIENTS)
            alive[-1 - layer] = [gradient]
            alive.pop(layer)
    assert set(ledger.marks[FORWARD, 0]) == {GRADIENTS, *PASSING}
    return ledger


def test_even_layers_are_extended() -> None:
    moments = extend(ledger_of([100] * 5, [7] * 5), CUT)
    assert moments is not None
    assert max(moment.passing_bytes for moment in moments) == 8 * 100 + 10
    assert max(moment.gradients for moment in moments) == 8 * 10


@pytest.mark.parametrize(
    ("kept", "rise"),
    [([100, 100, 100, 101, 100], [7] * 5), ([100] * 5, [7, 7, 7, 500, 7])],
    ids=["what is kept", "what is made for a moment"],
)
def test_uneven_layers_are_not(kept: list[int], rise: list[int]) -> None:
    assert extend(ledger_of(kept, rise), CUT) is None
