"""One configuration, four ways: the CPU on either stack, and the simulated hpu by optimum-habana and transformers 5."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support.rows import write_uneven_rows
from support.stacks import GAUDI, MAIN, NEW_ROAD, OLD_ROAD, ROOT, SPAWN, Road, losses_of, on_cpu, on_hpu, recorded

SHAPES = ("gemma3", "qwen2_5_vl", "llava", "llava_next")
ACCUMULATIONS = (1, 2)
CASES = [(shape, steps) for shape in SHAPES for steps in ACCUMULATIONS if (shape, steps) != ("llava", 2)]
"""tests/invariant/test_batch_split.py splits LLaVA's batch."""
FEWER = [(shape, 1) for shape in SHAPES[:3]]
"""Where two processes run; accumulated once as well."""
TWO = [("gemma3", 1), ("qwen2_5_vl", 1)]
"""Where only the mode, the optimizer or the engine is another; Qwen's tower reads its sizes on the host."""
CASES_OF = {
    "habana, eager": TWO,
    "habana, fused AdamW": TWO,
    "habana, 2 ranks": [*FEWER, ("gemma3", 2)],
    "habana, ZeRO-2": TWO,
    "gaudi, 2 ranks": [*FEWER, ("qwen2_5_vl", 2)],
    "gaudi, ZeRO-2": TWO,
}
"""The other ways have all cases."""
STEPS = 7
"""Five are an epoch, whose last batch is a smaller one."""
SETTINGS = {
    "do_train": True,
    "do_eval": True,
    "max_steps": STEPS,
    "bf16": False,
    "static_shapes": True,
    "max_shapes": 1,  # one shape, so that a global batch has the same rows however it is split
    "per_device_eval_batch_size": 2,
    "learning_rate": 1e-4,
    "adam_epsilon": 1e-6,  # a smaller one amplifies rounding where a gradient is all but zero
    "image_backend": "pil",
}
EXACT = {"first": 1e-6, "losses": 1e-5}
ACROSS = {"first": 1e-5, "losses": 1e-4}
"""Relative: within a stack, and between stacks."""
FIRST_NORM = {"gemma3": 1e-5, "qwen2_5_vl": 1e-5, "llava": 1e-4, "llava_next": 1e-4}
"""Relative. The LLaVA-shaped fixtures' gradients cancel: on the CPU alone their fp32 norm is 2e-5 off float64's."""

ONLY_5 = {"mm_token_type_ids"}
"""What transformers 5's processors add for its own models."""

Records = dict[tuple[str, int], Any]


def runs_of(
    flags: Any,
    folder: Path,
    model_folder: Callable[[str], Path],
    data: Path,
    batch: int,
    cases: Sequence[tuple[str, int]],
) -> list[list[str]]:
    return [
        flags(
            model_folder(shape),
            data,
            folder / f"{shape}-{steps}",
            **SETTINGS,
            per_device_train_batch_size=batch // steps,
            gradient_accumulation_steps=steps,
        )
        for shape, steps in cases
    ]


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], Path]) -> dict[str, Records]:
    """The records of every run, by way and then by shape and accumulation."""
    folder = tmp_path_factory.mktemp("four ways")
    data = write_uneven_rows(folder / "data", rows=18, validation=5)
    plain = folder / "plain_adam.json"
    plain.write_text('{"use_fused_adam": false, "use_fused_clip_norm": true}')
    same = partial(on_hpu, gaudi_config_name=plain)
    zero = ROOT / "launchers" / "deepspeed" / "zero2.json"
    eager = replace(OLD_ROAD, variables={"PT_HPU_LAZY_MODE": "0"})
    two: tuple[str | Path, ...] = (SPAWN, "--world_size", "2")
    kinds: dict[str, tuple[Any, Road, tuple[str | Path, ...]]] = {
        "main": (on_cpu, Road(python=MAIN, variables={}), ()),
        "gaudi's stack on the CPU": (on_cpu, Road(python=GAUDI, variables={"PT_HPU_LAZY_MODE": "1"}), ()),
        "habana": (same, OLD_ROAD, ()),
        "habana, eager": (same, eager, ()),
        "habana, fused AdamW": (on_hpu, OLD_ROAD, ()),
        "habana, 2 ranks": (same, OLD_ROAD, two),
        "habana, ZeRO-2": (partial(same, deepspeed=zero), OLD_ROAD, (*two, "--use_deepspeed")),
        "gaudi": (same, NEW_ROAD, ()),
        "gaudi, 2 ranks": (same, NEW_ROAD, two),
        "gaudi, ZeRO-2": (partial(same, deepspeed=zero), NEW_ROAD, (*two, "--use_deepspeed")),
    }
    found: dict[str, Records] = {}
    for name, (flags, road, launcher) in kinds.items():
        batch = 2 if launcher else 4
        keys = CASES_OF.get(name, CASES)
        words = runs_of(flags, folder / name, model_folder, data, batch, keys)
        ranks = recorded(
            folder / f"{name} records", words, python=road.python, launcher=launcher, variables=road.variables
        )
        found[name] = {key: list(records) for key, records in zip(keys, zip(*ranks, strict=True), strict=True)}
        for (shape, steps), records in found[name].items():
            file = folder / name / f"{shape}-{steps}" / "adapter_model.safetensors"
            records[0]["adapter bytes"] = file.stat().st_size
    return found


COMPARED: list[tuple[str, str, dict[str, float]]] = [
    ("gaudi's stack on the CPU", "main", ACROSS),
    ("habana", "main", ACROSS),
    ("habana, eager", "main", ACROSS),
    ("habana, 2 ranks", "main", ACROSS),
    ("habana", "gaudi's stack on the CPU", EXACT),
    ("habana, 2 ranks", "gaudi's stack on the CPU", EXACT),
    ("habana, ZeRO-2", "gaudi's stack on the CPU", EXACT),
    ("gaudi", "main", EXACT),
    ("gaudi, 2 ranks", "main", EXACT),
    ("gaudi, ZeRO-2", "main", EXACT),
    ("gaudi", "habana", ACROSS),
]


@pytest.mark.parametrize(
    ("way", "like", "within", "shape", "steps"),
    [(*one, shape, steps) for one in COMPARED for shape, steps in CASES_OF.get(one[0], CASES)],
)
def test_losses_norms_and_perplexity_are_those_of(
    way: str, like: str, within: dict[str, float], shape: str, steps: int, ways: dict[str, Records]
) -> None:
    expected, found = ways[like][shape, 1], ways[way][shape, steps]
    ours, theirs = losses_of(expected), losses_of(found)
    assert len(theirs) == STEPS
    assert theirs[0] == pytest.approx(ours[0], rel=within["first"])
    assert theirs == pytest.approx(ours, rel=within["losses"])
    assert found[0]["grad_norms"][0] == pytest.approx(expected[0]["grad_norms"][0], rel=FIRST_NORM[shape])
    assert found[0]["grad_norms"] == pytest.approx(expected[0]["grad_norms"], rel=1e-4)
    assert found[0]["perplexity"] == pytest.approx(expected[0]["perplexity"], rel=1e-4)


@pytest.mark.parametrize("shape", [shape for shape, _ in TWO])
def test_the_vendors_adam_differs_by_where_its_epsilon_stands(shape: str, ways: dict[str, Records]) -> None:
    """The default on Gaudi: the first step sees no optimizer; then epsilon outside the bias correction shows."""
    expected, found = ways["main"][shape, 1], ways["habana, fused AdamW"][shape, 1]
    ours, theirs = losses_of(expected), losses_of(found)
    assert theirs[0] == pytest.approx(ours[0], rel=1e-5)
    assert theirs == pytest.approx(ours, rel=1e-3)
    assert theirs != pytest.approx(losses_of(ways["habana"][shape, 1]), rel=1e-9)


@pytest.mark.parametrize(("shape", "steps"), CASES)
def test_batches_are_equal_byte_for_byte(shape: str, steps: int, ways: dict[str, Records]) -> None:
    main, stack, habana, gaudi = (
        ways[way][shape, steps][0]["digests"] for way in ("main", "gaudi's stack on the CPU", "habana", "gaudi")
    )
    assert stack == habana
    assert main == gaudi
    assert [{name: digest for name, digest in batch.items() if name not in ONLY_5} for batch in main] == stack
    assert len({batch["pixel_values"] for batch in stack}) > 5, "the batches themselves differ"


@pytest.mark.parametrize("shape", SHAPES)
def test_what_ran_is_what_was_asked_for(shape: str, ways: dict[str, Records]) -> None:
    """The real GaudiTrainer or transformers' own, over transformers' own model classes, and the engine."""
    for way, records in ways.items():
        if (shape, 1) not in records:
            continue
        record = records[shape, 1][0]
        assert ("GaudiTrainer" in record["trainer"]) == way.startswith("habana")
        assert record["device"].startswith("hpu" if way.startswith(("habana", "gaudi,")) or way == "gaudi" else "cpu")
        assert not [module for module in record["classes"] if module.startswith("optimum")]
        engine = {"2 ranks": "DistributedDataParallel", "ZeRO-2": "DeepSpeedEngine"}.get(way.partition(", ")[2])
        assert record["world_size"] == (2 if engine else 1)
        assert engine in (None, record["wrapped"])
        assert record["adapter bytes"] > 10_000, "complete, not ZeRO's empty shards"


def test_other_rows_would_give_other_numbers(ways: dict[str, Records]) -> None:
    """The control: the comparison sees another family's run, and the steps of one run differ."""
    assert losses_of(ways["main"]["llava", 1]) != pytest.approx(losses_of(ways["main"]["llava_next", 1]), rel=1e-4)
    losses = losses_of(ways["main"]["gemma3", 1])
    assert losses != pytest.approx(losses[1:] + losses[:1], rel=1e-4)
