"""Gaudi by transformers 5's own support: the same run as on the CPU, nothing read on the card, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support.rows import write_uneven_rows
from support.stacks import MAIN, ROOT, SPAWN, losses_of, on_cpu, on_hpu, on_new_road, recorded, run_words

NEWEST = ("qwen3_vl", "qwen3_5")
"""Families that transformers 5 alone has; the others are compared in tests/gaudi/test_same_numbers.py as well."""
SHAPES = ("llava", *NEWEST)
SETTINGS = {
    "do_train": True,
    "do_eval": True,
    "max_steps": 10,
    "bf16": False,
    "static_shapes": True,
    "max_shapes": 1,  # one shape, so that a global batch has the same rows however it is split
    "per_device_eval_batch_size": 2,
    "learning_rate": 1e-4,
    "adam_epsilon": 1e-6,  # a smaller one amplifies rounding where a gradient is all but zero
    "image_backend": "pil",
    "logging_steps": 5,
}
READS_OF_A_LOG = 4
"""Loss, gradient norm, the step's finite figures; on two ranks the loss of both."""
READS_OF_A_STEP = {"qwen3_vl": 24, "qwen3_5": 2}
"""At most, of two micro-batches: Qwen3-VL adds earlier layers' features by boolean indexing, Qwen3.5's linear attention
asks whether a row is padded."""
WAYS = {"eager, accumulated": NEWEST, "compile": ("qwen3_5",), "eager, 2 ranks": SHAPES, "ZeRO-2": NEWEST}
RUNS = [(way, shape) for way, shapes in WAYS.items() for shape in shapes]

Records = dict[str, Any]


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], Path]) -> dict[str, Records]:
    """The records of every run, by way and then by shape; a list per rank."""
    folder = tmp_path_factory.mktemp("new road")
    data = write_uneven_rows(folder / "data", rows=18, validation=5)
    kinds: dict[str, tuple[Any, dict[str, str], tuple[Any, ...], int, int]] = {
        "cpu": (on_cpu, {}, (), 4, 1),
        "eager, accumulated": (on_hpu, on_new_road(), (), 2, 2),
        "compile": (on_hpu, on_new_road(PT_HPU_TC_MODE="1"), (), 4, 1),
        "eager, 2 ranks": (on_hpu, on_new_road(), (SPAWN, "--world_size", "2"), 2, 1),
        "ZeRO-2": (
            partial(on_hpu, deepspeed=ROOT / "launchers" / "deepspeed" / "zero2.json"),
            on_new_road(),
            (SPAWN, "--world_size", "2", "--use_deepspeed"),
            2,
            1,
        ),
    }
    found: dict[str, Records] = {}
    for name, (flags, variables, launcher, batch, steps) in kinds.items():
        shapes = WAYS.get(name, SHAPES)
        split = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
        words = [flags(model_folder(shape), data, folder / name / shape, **SETTINGS, **split) for shape in shapes]
        ranks = recorded(folder / f"{name} records", words, python=MAIN, launcher=launcher, variables=variables)
        found[name] = {shape: list(records) for shape, records in zip(shapes, zip(*ranks, strict=True), strict=True)}
    return found


@pytest.mark.parametrize(("way", "shape"), RUNS)
def test_losses_norms_and_perplexity_are_those_of_the_cpu(way: str, shape: str, ways: dict[str, Records]) -> None:
    expected, found = ways["cpu"][shape], ways[way][shape]
    ours, theirs = losses_of(expected), losses_of(found)
    assert len(theirs) == 10
    assert theirs[0] == pytest.approx(ours[0], rel=1e-6)
    assert theirs == pytest.approx(ours, rel=1e-5)
    assert found[0]["grad_norms"] == pytest.approx(expected[0]["grad_norms"], rel=1e-4)
    assert found[0]["perplexity"] == pytest.approx(expected[0]["perplexity"], rel=1e-4)


def test_batches_are_equal_byte_for_byte(ways: dict[str, Records]) -> None:
    (cpu,), (hpu,) = ways["cpu"]["qwen3_5"], ways["compile"]["qwen3_5"]
    assert hpu["digests"] == cpu["digests"]
    assert len({batch["pixel_values"] for batch in hpu["digests"]}) > 5, "the batches themselves differ"


def test_what_ran_is_what_was_asked_for(ways: dict[str, Records]) -> None:
    for way, wrapped in (
        ("eager, 2 ranks", "DistributedDataParallel"),
        ("compile", "OptimizedModule"),
        ("ZeRO-2", "DeepSpeedEngine"),
    ):
        for record, *_ in ways[way].values():
            assert record["device"] == "hpu:0"
            assert record["wrapped"] == wrapped
            assert "GaudiTrainer" not in record["trainer"]
            assert (record["end"]["graphs"] > 0) == (way == "compile")
    assert {record["device"] for (record,) in ways["cpu"].values()} == {"cpu"}


@pytest.mark.parametrize(("way", "shape"), [run for run in RUNS if run[0] != "ZeRO-2"])
def test_steps_that_log_nothing_read_nothing(way: str, shape: str, ways: dict[str, Records]) -> None:
    reads = [step["reads"] for step in ways[way][shape][0]["steps"]]
    steps = [after - before for before, after in itertools.pairwise(reads)]
    assert max(steps[number] for number in (1, 2, 3, 6, 7, 8)) <= READS_OF_A_STEP.get(shape, 0)
    if shape not in READS_OF_A_STEP:
        assert 0 < steps[4] <= READS_OF_A_LOG, "the control: step 6 has the reads of step 5's log"


def test_another_familys_run_has_other_numbers(ways: dict[str, Records]) -> None:
    """The control of the comparison."""
    assert losses_of(ways["eager, 2 ranks"]["llava"]) != pytest.approx(losses_of(ways["cpu"]["qwen3_vl"]), rel=1e-4)


@pytest.mark.parametrize(
    ("more", "variables", "said"),
    [
        (["--use_lazy_mode"], {"PT_HPU_LAZY_MODE": "0"}, "--use_lazy_mode: lazy mode is optimum-habana's"),
        ([], {"PT_HPU_LAZY_MODE": "1"}, "PT_HPU_LAZY_MODE=1: lazy mode is optimum-habana's"),
        (["--peft_method", "none", "--dtype", "float16"], {}, "float16 weights cannot be trained"),
        (["--fp16"], {}, "--fp16 True cannot be used on Gaudi: Gaudi trains in bf16"),
        (["--use_hpu_graphs_for_inference"], {}, "is for the habana backend: add --backend habana"),
        (["--fsdp", "full_shard"], {}, "--fsdp full_shard cannot be used on Gaudi"),
        (["--backend", "habana"], {}, "missing are optimum-habana with transformers 4.55"),
        (["--cache_size_limit", "8"], {}, "--cache_size_limit 8 is for torch.compile: add --torch_compile"),
        (
            ["--attn_implementation", "gaudi_fused_sdpa"],
            {},
            "is not there with --backend gaudi; allowed are auto, sdpa",
        ),
    ],
)
def test_what_this_road_has_not_is_refused_by_name(
    more: list[str], variables: dict[str, str], said: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    data = write_uneven_rows(tmp_path / "data", rows=2)
    words = on_hpu(model_folder("gemma3"), data, tmp_path / "out", do_train=True)
    done = run_words(
        ["run_lora_vlm.py", *words, *more], python=MAIN, variables=on_new_road(**variables), cold=bool(variables)
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_auto_takes_this_road_where_it_is_the_one_that_goes_with_transformers(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    data = write_uneven_rows(tmp_path / "data", rows=2)
    words = on_hpu(model_folder("gemma3"), data, tmp_path / "out", do_train=True, max_steps=1, log_level="info")
    variables = {name: value for name, value in on_new_road().items() if name != "PT_HPU_LAZY_MODE"}
    done = run_words(["run_lora_vlm.py", *words[:-1]], python=MAIN, variables=variables, cold=True)
    assert done.returncode == 0, done.stderr
    for said in ("Backend: gaudi on 8 x GAUDI2", "Gaudi mode: eager.", "Precision: bf16 autocast"):
        assert said in done.stderr


def test_a_plan_knows_the_optimizer_that_a_run_takes(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    data = write_uneven_rows(tmp_path / "data", rows=2)
    words = ["--model_name_or_path", str(model_folder("gemma3")), "--dataset_name", str(data), "--use_habana"]
    vlm_lora = MAIN.with_name("vlm-lora")
    done = run_words([vlm_lora, "plan", *words, "--device", "Gaudi3"], python=MAIN, variables=on_new_road(), cold=True)
    assert done.returncode == 0, done.stderr
    assert "adamw_torch." in done.stdout
    assert "adamw_torch_fused" not in done.stdout
