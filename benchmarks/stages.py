"""What `python -m benchmarks` measures on a CPU, stage by stage, and what each figure should be at most."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare import (
    ContenderError,
    UnequalLossError,
    compare,
    compare_epochs,
    in_own_process,
    measure_peak,
    require_equal_losses,
)
from benchmarks.contenders import WRONG_LABELS, Contender, Job
from benchmarks.figures import Figure, spread
from benchmarks.folders import build_folder, write_rows
from benchmarks.proportions import tower_share
from benchmarks.settings import groups_by_length, has_setting
from benchmarks.shapes import LARGE_HEAD, SHAPES, Shape

BATCH = 4
ROWS = 32
QUESTION, ANSWER = 24, 8
"""Words: about 70 and 20 tokens."""
CACHE = "cache_vision_features"


@dataclass(frozen=True, kw_only=True)
class Context:
    """Where stages work, and how long."""

    place: Path
    rounds: int = 15
    epochs: int = 3
    """Rounds of whole epochs, which take seconds each."""


@dataclass(kw_only=True)
class Found:
    """What a stage found."""

    figures: list[Figure] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """What could not be measured, with the reason."""


def job_of(context: Context, name: str, shape: Shape, data: Path, *, batch_size: int = BATCH) -> Job:
    """Return what contenders train: a shape's model on a data folder."""
    return Job(
        model=build_folder(shape, context.place / f"model-{name}"),
        data=data,
        output=context.place / "out",
        batch_size=batch_size,
    )


def _step_job(context: Context, name: str) -> Job:
    shape = SHAPES[name]
    rows = [(row, QUESTION, ANSWER) for row in range(ROWS)]
    return job_of(context, name, shape, write_rows(context.place / f"rows-{shape.side}", rows, side=shape.side))


def without_features() -> dict[str, str]:
    """Return the flags under which a tower runs every time."""
    return {CACHE: "off"} if has_setting(CACHE) else {}


def control(context: Context) -> Found:
    """The negative control: a contender that supervises the question, too, must be refused."""
    shares = []
    for name in SHAPES:
        job = _step_job(context, name)
        share = in_own_process(tower_share, job.model, job.data, batch_size=BATCH)
        shares.append(Figure(name=f"{name}: forward pass of the tower / of the language model", value=share))
    right, wrong = Contender(name="plain", kind="plain"), Contender(name="wrong labels", kind=WRONG_LABELS)
    try:
        compare([right, wrong], job, rounds=1, steps=1)
    except UnequalLossError:
        refused = Figure(name="contenders with wrong labels that were refused", value=1, unit="of 1")
        return Found(figures=[refused, *shares])
    raise ContenderError("A contender with wrong labels was not refused: nothing that is measured can be trusted.")


@dataclass(frozen=True, kw_only=True)
class StepGoals:
    """Of a step against TRL's, by shape."""

    cold: Mapping[str, float]
    warm: Mapping[str, float]


CHECKPOINTING = StepGoals(
    cold={"Gemma3": 0.70, "Qwen2.5-VL": 0.94, "LLaVA": 1.00}, warm={"Gemma3": 0.61, "Qwen2.5-VL": 0.90, "LLaVA": 0.97}
)
WITHOUT = StepGoals(cold={}, warm={"Gemma3": 0.78, "Qwen2.5-VL": 0.99, "LLaVA": 0.97})


def _steps(context: Context, goals: StepGoals, theirs: Contender, flags: Mapping[str, Any]) -> Found:
    found = Found()
    for name in SHAPES:
        job = _step_job(context, name)
        cached = has_setting(CACHE)
        cold = Contender(name="ours", kind="ours", flags={**flags, **without_features()})
        contenders = [cold, theirs]
        if cached:
            # Its first epoch makes them, untimed.
            name_of_warm, epoch = "ours, features cached", ROWS // BATCH
            warm = Contender(name=name_of_warm, kind="ours", flags={**flags, CACHE: "on"}, warm_steps=epoch + 1)
            contenders.append(warm)
        else:
            found.missing.append(f"{name}, features cached: there is no --{CACHE} yet")
        result = compare(contenders, job, rounds=context.rounds, steps=1)
        for contender in contenders:
            if contender is theirs:
                continue
            goal = (goals.warm if contender.flags.get(CACHE) == "on" else goals.cold).get(name)
            ratios = result.ratios(contender.name, theirs.name)
            found.figures.append(spread(f"{name}: {contender.name} / {theirs.name}", ratios, goal=goal))
    return found


def checkpointing(context: Context) -> Found:
    """A step, every layer checkpointed on both sides; TRL as it is by default."""
    return _steps(context, CHECKPOINTING, Contender(name="TRL", kind="trl"), {"gradient_checkpointing": True})


def no_checkpointing(context: Context) -> Found:
    """A step without checkpointing on both sides."""
    theirs = Contender(name="TRL", kind="trl", flags={"gradient_checkpointing": False})
    return _steps(context, WITHOUT, theirs, {})


def plain(context: Context) -> Found:
    """A step of the first epoch, two questions an image that follow one another, against the plain script."""
    found = Found()
    steps = context.rounds + 3
    rows = [(row // 2, QUESTION, ANSWER) for row in range(BATCH * (steps + 1))]
    if not has_setting(CACHE):
        found.missing.append(f"features cached while they are made: there is no --{CACHE} yet")
    for name, shape in SHAPES.items():
        data = write_rows(context.place / f"pairs-{shape.side}-{steps}", rows, side=shape.side)
        job = job_of(context, name, shape, data)
        cold = context.place / f"cold-{name}"
        shutil.rmtree(cold, ignore_errors=True)  # of an earlier run in this folder
        contenders = [
            Contender(name="ours", kind="ours", flags={CACHE: "on"} if has_setting(CACHE) else {}, cache=cold),
            Contender(name="plain script", kind="plain"),
        ]
        result = compare(contenders, job, rounds=context.rounds, steps=1)
        goal = 0.90 if name == "Gemma3" else None
        ratios = result.ratios("ours", "plain script")
        found.figures.append(spread(f"{name}: ours / plain script", ratios, goal=goal))
    return found


def peaks(context: Context) -> Found:
    """The most memory of two steps, each contender in a process of its own."""
    found = Found()
    cases: Sequence[tuple[str, str, Shape, Mapping[str, Any], float]] = (
        ("Gemma3, every layer checkpointed", "Gemma3", SHAPES["Gemma3"], {"gradient_checkpointing": True}, 0.60),
        ("head of 262,144 columns, short answers", "head", LARGE_HEAD, {}, 0.25),
    )
    for title, name, shape, flags, goal in cases:
        rows = [(row, QUESTION, ANSWER) for row in range(ROWS)]
        data = write_rows(context.place / f"rows-{shape.side}", rows, side=shape.side)
        job = job_of(context, name, shape, data, batch_size=8)
        measured = {
            contender.name: measure_peak(contender, job)
            for contender in (
                Contender(name="ours", kind="ours", flags={**flags, **without_features()}),
                Contender(name="plain script", kind="plain", flags=flags),
                Contender(name="TRL", kind="trl", flags={"gradient_checkpointing": False, **flags}),
            )
        }
        require_equal_losses({each: loss for each, (loss, _) in measured.items()})
        weights = sum(path.stat().st_size for path in job.model.glob("*.safetensors"))
        above = {each: peak - weights for each, (_, peak) in measured.items()}
        note = ", ".join(f"{each} {size / 2**20:.0f} MiB" for each, size in above.items())
        share = above["ours"] / above["plain script"]
        found.figures.append(
            Figure(name=f"{title}: peak above the weights, ours / plain script", value=share, goal=goal, note=note)
        )
    return found


LENGTHS = replace(SHAPES["LLaVA"], hidden=64, layers=3, tower_hidden=64, tower_layers=1, side=56)
"""LLaVA's shape with 16 tokens an image, so that the shortest rows have 50."""
TOKENS_A_WORD = 2.4


def lengths_of(kind: str, rows: int, *, seed: int = 0) -> list[int]:
    """Return tokens of rows between 50 and 800: `uniform`, or `mostly short` (four of five below 200)."""
    generator = np.random.default_rng(seed)
    if kind == "uniform":
        return [int(length) for length in generator.integers(50, 801, rows)]
    short = generator.random(rows) < 0.8
    drawn = np.where(short, generator.integers(50, 201, rows), generator.integers(200, 801, rows))
    return [int(length) for length in drawn]


GROUPED = {"uniform": 0.65, "mostly short": 0.52}
PACKED_TOKENS = {"uniform": 0.62, "mostly short": 0.47}


def epochs(context: Context) -> Found:
    """Whole epochs on rows of 50 to 800 tokens, batch 8, checkpointing equal on both sides."""
    found = Found()
    rows = 128
    frozen, base = {"learning_rate": 0.0}, "ours, random"
    for kind in GROUPED:
        words = [max(1, round((length - 38) / TOKENS_A_WORD)) for length in lengths_of(kind, rows)]
        data = write_rows(
            context.place / f"lengths-{kind.replace(' ', '-')}",
            [(row, count, ANSWER) for row, count in enumerate(words)],
            side=LENGTHS.side,
        )
        job = job_of(context, "lengths", LENGTHS, data, batch_size=8)
        random = {"train_sampling_strategy": "random", "gradient_checkpointing": True, **frozen}
        contenders = [
            Contender(name="TRL", kind="trl", flags=random),
            Contender(name=base, kind="ours", flags={**random, **without_features()}),
        ]
        if groups_by_length():
            grouped = {**random, **without_features(), "train_sampling_strategy": "group_by_length"}
            contenders.append(Contender(name="ours, grouped", kind="ours", flags=grouped))
        else:
            found.missing.append(f"{kind}, grouped: group_by_length is refused yet")
        if has_setting("packing"):
            packed = {
                **random,
                **without_features(),
                "packing": True,
                "pack_length": 2048,
                "per_device_train_batch_size": 1,
            }
            contenders.append(Contender(name="ours, packed", kind="ours", flags=packed))
        else:
            found.missing.append(f"{kind}, packed: there is no --packing yet")
        result = compare_epochs(contenders, job, rounds=context.epochs)
        for name in (contender.name for contender in contenders[1:]):
            ratios = result.ratios(name, "TRL", fetching=True)
            found.figures.append(spread(f"{kind}: {name} / TRL, CPU time of an epoch", ratios))
            if name == base:
                continue
            # The goals are held against our own random order: TRL's step costs more, which is no merit of grouping.
            goal = GROUPED[kind] if name == "ours, grouped" else None
            ratios = result.ratios(name, base, fetching=True)
            found.figures.append(spread(f"{kind}: {name} / {base}, CPU time of an epoch", ratios, goal=goal))
            goal = PACKED_TOKENS[kind] if name == "ours, packed" else None
            share = result.tokens(name) / result.tokens(base)
            found.figures.append(Figure(name=f"{kind}: {name} / {base}, computed tokens", value=share, goal=goal))
    return found


def _module(name: str, what: str) -> Callable[[Context], Found]:
    """Return the stage that is a script of its own: its function `figures(place, rounds)`."""

    def stage(context: Context) -> Found:
        if find_spec(f"benchmarks.{name}") is None:
            return Found(missing=[f"{what}: benchmarks/{name}.py is not there yet"])
        module = importlib.import_module(f"benchmarks.{name}")
        if not hasattr(module, "figures"):
            return Found(missing=[f"{what}: benchmarks/{name}.py is a script of its own"])
        return Found(figures=in_own_process(module.figures, context.place, context.rounds))

    stage.__doc__ = what
    return stage


STAGES: Mapping[str, Callable[[Context], Found]] = {
    "control": control,
    "checkpointing": checkpointing,
    "no_checkpointing": no_checkpointing,
    "plain": plain,
    "peaks": peaks,
    "epochs": epochs,
    "data": _module("data_path", "CPU time of the data path against TRL's collator."),
    "answers": _module("answers", "Answers of an evaluation against a plain loop of generate."),
    "head": _module("head_loss", "Head and loss of long answers in chunks, against all logits at once."),
}
"""In their order. `control` runs before any other."""
