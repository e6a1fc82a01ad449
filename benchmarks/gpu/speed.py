"""Steps of large models on a GPU: ours, TRL's and the plain script's, with tokens a second, MFU, peak and start-up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compare import Left, compare, in_own_process
from benchmarks.contenders import Contender, Job
from benchmarks.figures import Figure, spread
from benchmarks.folders import build_folder, write_rows
from benchmarks.settings import has_setting
from benchmarks.shapes import Shape

BATCH, ROWS = 4, 8
"""An epoch is two steps, so that cached features are made before anything is timed."""
QUESTION, ANSWER = 60, 25
"""Words: about 150 and 60 tokens."""
TOLERANCE = 5e-3
"""Of first losses in bf16, relative: kernels and the order of sums differ between contenders."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was found of a model."""

    figures: list[Figure]
    missing: list[str]


def prepare(shape: Shape, place: Path, name: str, device: str) -> Job:
    """Build a model with random weights and its rows; return what contenders train."""
    bf16 = device == "cuda"
    model = build_folder(shape, place / name, device=device, dtype="bfloat16" if bf16 else "float32")
    rows = [(row, QUESTION, ANSWER) for row in range(ROWS)]
    data = write_rows(place / f"rows-{shape.side}", rows, side=shape.side)
    return Job(model=model, data=data, output=place / "out", batch_size=BATCH, device=device, bf16=bf16)


def contenders(*, trl: bool) -> list[Contender]:
    """Return who is compared: every layer checkpointed, as is TRL's default, and ours with cached features."""
    same, cache = {"gradient_checkpointing": True}, "cache_vision_features"
    own = {cache: "off"} if has_setting(cache) else {}
    found = [Contender(name="ours", kind="ours", flags={**same, **own})]
    if has_setting(cache):
        found.append(Contender(name="ours, features cached", kind="ours", flags={**same, cache: "on"}))
    found += [Contender(name="TRL", kind="trl")] if trl else []
    return [*found, Contender(name="plain script", kind="plain", flags={"gradient_checkpointing": True})]


def measure(
    shape: Shape, name: str, place: Path, device: str, *, trl: bool, peak_flops: float | None, left: Left, rounds: int
) -> Measured:
    """Compare contenders on one model.

    Args:
        shape: of the model.
        name: its folder's.
        place: where to build it.
        device: `cuda`, or `cpu`.
        trl: whether TRL is there.
        peak_flops: of the device, for MFU; None where that is not known.
        left: the seconds that it may take.
        rounds: at most so many.

    Raises:
        UnequalLossError, ContenderError, OutOfTimeError: nothing was measured.
    """
    job = in_own_process(prepare, shape, place, name, device, device=device, left=left)
    everyone = contenders(trl=trl)
    result = compare(everyone, job, rounds=rounds, steps=1, together=device == "cuda", tolerance=TOLERANCE, left=left)
    work = in_own_process(step_work, job, BATCH, device=device, left=left)
    figures = []
    for each in everyone:
        seconds = result.costs(each.name, wall=True)
        tokens = result.tokens(each.name) / len(seconds)
        figures += _of_one(each.name, seconds, tokens, peak_flops, work, result.startup[each.name])
        memory = max(step.memory for steps in result.rounds[each.name] for step in steps)
        if memory:
            figures.append(Figure(name=f"{each.name}: peak of memory", value=memory / 2**30, unit="GiB"))
    figures += [
        spread(f"{mine.name} / {other.name}: time of a step", result.ratios(mine.name, other.name, wall=True))
        for mine in everyone
        for other in everyone
        if mine.kind == "ours" != other.kind
    ]
    missing = [] if trl else ["rows against TRL: it is not there"]
    missing += [] if peak_flops else ["MFU: the device's peak is not tabled"]
    return Measured(figures=figures, missing=missing)


def _of_one(
    name: str, seconds: Sequence[float], tokens: float, peak_flops: float | None, work: float, startup: float
) -> list[Figure]:
    median = spread(f"{name}: a step", [each * 1000 for each in seconds])
    figures = [
        Figure(name=median.name, value=median.value, low=median.low, high=median.high, unit="ms"),
        Figure(name=f"{name}: tokens a second, padding included", value=tokens * 1000 / median.value, unit="tokens/s"),
        Figure(name=f"{name}: up to the first step, without imports", value=startup, unit="s"),
    ]
    if peak_flops:
        share = 100 * work * 1000 / median.value / peak_flops
        note = "operations of the model without recomputation"
        figures.append(Figure(name=f"{name}: MFU", value=share, unit="%", note=note))
    return figures


def step_work(job: Job, batch_size: int) -> float:
    """Return the operations of a step by the plan's formula, recomputation left out (Chowdhery et al. 2022, "PaLM")."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    from benchmarks.contenders import PlainCollator, read_rows
    from vlm_lora.memory.speed import Compute, row_flops
    from vlm_lora.memory.trace import weights_of
    from vlm_lora.model.families import family_of
    from vlm_lora.model.parts import find_parts

    config = AutoConfig.from_pretrained(job.model)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config).requires_grad_(False)
    compute = Compute(weights=list(weights_of(model, find_parts(model, family_of(config)))), config=config)
    batch = PlainCollator(AutoProcessor.from_pretrained(job.model))(read_rows(job.data)[:batch_size])
    length = int(batch["input_ids"].shape[1])
    supervised = int((batch["labels"] != -100).sum()) / batch_size
    pixels = batch["pixel_values"].numel() / batch_size
    return batch_size * row_flops(compute, tokens=length, width=length, supervised=supervised, pixels=pixels)
