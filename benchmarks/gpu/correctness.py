"""Whether a GPU computes what it should: short trainings of a small model that must have the same losses, and answers.

Every check compares the losses of the first steps of two ways to train the same rows. Before them, a training with
wrong labels has to be refused by the widest tolerance of all.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.compare import ContenderError, Left, OutOfTimeError, in_own_process
from benchmarks.contenders import EPOCH, WRONG_LABELS, Contender, Job, StepFigures, Turns, our_flags, parsed, run
from benchmarks.figures import Figure
from benchmarks.settings import has_setting

STEPS = 3
EXACT, ROUNDED, QUANTIZED = 1e-4, 1e-2, 2e-1
"""Relative: the same computation in another order, in bf16, with 4-bit weights."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to train."""

    flags: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "ours"
    bf16: bool = True
    ranked: bool = False
    """As the one rank of a process group."""
    epoch: bool = False
    """Of a whole epoch the loss per token, whatever the order of rows."""
    package: str = ""
    """What has to be installed for it."""
    setting: str = ""
    """What the project has to have for it."""
    cuda: bool = False
    """Whether it is for CUDA alone."""

    def missing(self, device: str) -> str:
        """Say why it cannot be run here; nothing where it can."""
        if self.cuda and device != "cuda":
            return "it is for CUDA"
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        return f"there is no --{self.setting} yet" if self.setting and not has_setting(self.setting) else ""


_STILL = {"learning_rate": 0.0, "train_sampling_strategy": "random"}
WAYS: Mapping[str, Way] = {
    "float32": Way(bf16=False),
    "bf16": Way(),
    "wrong labels": Way(kind=WRONG_LABELS),
    "sdpa": Way(flags={"attn_implementation": "sdpa"}),
    "flash attention": Way(flags={"attn_implementation": "flash_attention_2"}, package="flash_attn", cuda=True),
    "4-bit": Way(flags={"load_in_4bit": True}, package="bitsandbytes"),
    "one rank": Way(ranked=True),
    "checkpointing": Way(flags={"gradient_checkpointing": True}),
    "an epoch": Way(flags=_STILL, bf16=False, epoch=True),
    "an epoch in packs": Way(
        flags={**_STILL, "packing": True, "pack_length": 512, "per_device_train_batch_size": 1},
        bf16=False,
        epoch=True,
        setting="packing",
    ),
    "features cached": Way(flags={"cache_vision_features": "on"}, setting="cache_vision_features"),
}

CHECKS: Sequence[tuple[str, str, float]] = (
    ("bf16", "float32", ROUNDED),
    ("flash attention", "sdpa", ROUNDED),
    ("4-bit", "bf16", QUANTIZED),
    ("one rank", "bf16", ROUNDED),
    ("checkpointing", "bf16", ROUNDED),
    ("an epoch in packs", "an epoch", EXACT),
    ("features cached", "bf16", ROUNDED),
)
"""What must have the losses of what, within which share of them."""


def losses(way: Way, name: str, job: Job) -> list[float]:
    """Train one way and return the losses of its first steps, or an epoch's loss per token."""
    from benchmarks.compare import mean_loss

    if way.ranked:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        rank = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in rank.items()}, MASTER_ADDR="127.0.0.1")
    turns: list[list[StepFigures]] = []

    def next_turn(done: list[StepFigures]) -> int:
        turns.append(done)
        return 0 if len(turns) > 1 else EPOCH if way.epoch else STEPS

    contender = Contender(name=name, kind=way.kind, flags=way.flags)
    run(contender, replace(job, bf16=way.bf16), Turns(next_turn))
    return [mean_loss(turns[1])] if way.epoch else [step.loss for step in turns[1]]


def answers(job: Job, batch_size: int) -> list[str]:
    """Generate an answer to every row in batches of a size."""
    from vlm_lora import pipeline

    output = job.output / f"answers-{batch_size}"
    flags = our_flags(Contender(name="answers", kind="ours"), replace(job, bf16=False))
    flags |= {
        "output_dir": output,
        "do_train": False,
        "do_eval": True,
        "validation_fraction": 0.5,
        "predict_with_generate": True,
        "max_new_tokens": 12,
        "per_device_eval_batch_size": batch_size,
    }
    pipeline.train(parsed({name: value for name, value in flags.items() if name not in ("lora_rank", "lora_alpha")}))
    lines = (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["generated"] for line in lines]


def difference(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the largest relative difference of losses; infinite where they are not as many, or not numbers."""
    if len(one) != len(other) or not one:
        return float("inf")
    each = [abs(a - b) / abs(b) if b else float("inf") for a, b in zip(one, other, strict=True)]
    return max((value if value == value else float("inf")) for value in each)


def check(job: Job, left: Left, *, at_once: int = 3) -> tuple[list[Figure], list[str]]:
    """Run all checks that can be run here.

    Args:
        job: the small model and its rows.
        left: the seconds that it may take.
        at_once: so many trainings share the device.

    Returns:
        Figures with their tolerances as goals, and what is missing, with the reason.

    Raises:
        ContenderError: a training with wrong labels was not refused.
    """
    figures: list[Figure] = []
    missing = [f"{name}: {why}" for name, way in WAYS.items() if (why := way.missing(job.device))]
    wanted = [name for name, way in WAYS.items() if not way.missing(job.device)]
    tasks: dict[str, Callable[[], Any]] = {
        name: _task(losses, WAYS[name], name, job, device=job.device, left=left) for name in wanted
    }
    tasks |= {f"answers-{size}": _task(answers, job, size, device=job.device, left=left) for size in (1, 4)}
    with ThreadPoolExecutor(at_once) as pool:
        found = dict(zip(tasks, pool.map(_tried, tasks.values()), strict=True))
    failed = {name: value for name, value in found.items() if isinstance(value, Exception)}
    missing += [f"{name}: {_why(error)}" for name, error in failed.items()]
    figures.append(_control(found))
    for name, against, tolerance in CHECKS:
        if name in wanted and not {name, against} & set(failed):
            title = f"{name} against {against}: largest relative difference of losses"
            figures.append(Figure(name=title, value=difference(found[name], found[against]), goal=tolerance))
    if not {"answers-1", "answers-4"} & set(failed):
        wrong = sum(one != other for one, other in zip(found["answers-1"], found["answers-4"], strict=True))
        figures.append(
            Figure(name="answers that differ between batches of 1 and 4", value=wrong, goal=0, unit="answers")
        )
    return figures, missing


def _control(found: Mapping[str, Any]) -> Figure:
    """Refuse to say anything where wrong labels would pass the widest tolerance but that of 4-bit weights."""
    wrong, right = found["wrong labels"], found["bf16"]
    if isinstance(wrong, Exception) or isinstance(right, Exception):
        raise ContenderError(f"The control could not be run: {_why(wrong if isinstance(wrong, Exception) else right)}")
    apart = difference(wrong, right)
    if apart <= ROUNDED:
        raise ContenderError(f"Wrong labels change the loss by {apart:.2g} alone: the checks would see nothing.")
    return Figure(name="control: wrong labels, relative difference of losses", value=apart, note=f"above {ROUNDED}")


def _task(call: Callable[..., Any], *args: Any, device: str, left: Left) -> Callable[[], Any]:
    return lambda: in_own_process(call, *args, device=device, left=left)


def _tried(task: Callable[[], Any]) -> Any:
    try:
        return task()
    except (ContenderError, OutOfTimeError) as error:
        return error


def _why(error: Exception) -> str:
    if isinstance(error, OutOfTimeError):
        return "it did not fit into the time"
    return f"failed: {str(error).strip().splitlines()[-1]}"


def rows_of(place: Path, *, side: int, rows: int = 16) -> Path:
    """Write the rows that the checks train."""
    from benchmarks.folders import write_rows

    return write_rows(place, [(row, 6 + 3 * row, 4 + row % 5) for row in range(rows)], side=side)
