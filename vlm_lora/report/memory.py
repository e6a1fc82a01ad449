"""The memory plan as a table, as JSON, and as the advice in an out-of-memory message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vlm_lora.backend import Backend, DeviceSpec
from vlm_lora.errors import MemoryExhaustedError, UserError
from vlm_lora.memory.plan import ITEMS, TIGHT, MemoryPlan
from vlm_lora.memory.proposals import Proposal
from vlm_lora.memory.request import PlanReport, Verdict
from vlm_lora.memory.speed import FACTOR, TimePlan

GIB = 2**30

_MEANINGS = {
    "weights": "base model, frozen and trained",
    "adapter": "LoRA matrices",
    "gradients": "of what is trained",
    "optimizer": "states, and copies of what is trained",
    "activations": "kept by the language model for the backward pass",
    "vision tower": "tower and projector",
    "logits": "head and loss, on supervised positions",
    "backward": "made by the backward pass for a moment",
    "batch": "the micro-batch",
    "communication": "between processes; unpacked 4-bit weights",
    "overhead": "driver, context, kernels",
}


def size(count: float) -> str:
    """Return bytes in words: `3.21 GiB`, and `41 MiB` below a tenth of one."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"


@contextmanager
def progress(*, disabled: bool) -> Iterator[Callable[[str], None]]:
    """Yield what shows one line of progress on stderr, where that is a terminal, and takes it away at the end."""
    if disabled:
        yield lambda _: None
        return
    with Console(stderr=True, highlight=False).status("Reading configuration, processor and rows ...") as status:
        yield lambda words: status.update(f"{escape(words)} ...")


def print_plan(report: PlanReport, console: Console) -> None:
    """Print one table per kind of plan, the verdict on each device, and proposals where one does not fit."""
    choice = report.choice
    console.print(f"Model: {report.model}", markup=False)
    console.print(f"Data: {report.note}", markup=False)
    console.print(f"Images are shown {report.image_size}.", markup=False)
    console.print(
        f"Batch {choice.batch_size} per device, {choice.accumulation} micro-batches, {choice.world_size} processes, "
        f"{'with' if choice.checkpointing else 'without'} gradient checkpointing, {choice.optimizer}.",
        markup=False,
    )
    for verdict in report.verdicts:
        _print_verdict(verdict, console, only=len(report.verdicts) == 1)


def _print_verdict(verdict: Verdict, console: Console, *, only: bool) -> None:
    plan, device = verdict.plan, verdict.device
    if only:
        table = Table("item", "per device", "what it is")
        table.columns[1].justify = "right"
        for name in ITEMS:
            if plan.items[name]:
                table.add_row(name, size(plan.items[name]), _MEANINGS[name])
        table.add_section()
        table.add_row("total", size(plan.total), f"at the peak of a step, {device.name}")
        console.print(table)
    console.print(judgement(plan, device), markup=False)
    if plan.host_bytes:
        console.print(f"  and {size(plan.host_bytes)} of the host's memory for each process.", markup=False)
    for line in proposal_lines(verdict.proposals):
        console.print(f"  {line}", markup=False)
    if verdict.time is not None:
        console.print(f"  {time_line(verdict.time)}", markup=False)


def duration(seconds: float) -> str:
    """Return a time in words: `12 ms`, `3.4 s`, `5.2 min`, `7.1 h`."""
    for least, unit, name in ((5400, 3600, "h"), (90, 60, "min"), (1, 1, "s")):
        if seconds >= least:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1000:.3g} ms"


def time_line(time: TimePlan) -> str:
    """Say how long steps and epochs are estimated to take, or why that is not known."""
    work = f"{time.flops / 1e12:,.3g} Tflop a step, {time.padding:.0%} of the tokens padding"
    work += ", the tower run in the first epoch only and not counted" if time.cached_features else ""
    if time.step_seconds is None:
        return f"Time: {time.source} ({work})."
    epoch = ""
    if time.epoch_seconds is not None:
        epoch = f", {duration(time.epoch_seconds)} an epoch of {time.steps:,} steps"
    left_out = f", without {' and '.join(time.left_out)}" if time.left_out else ""
    return (
        f"Time, an estimate within a factor of {FACTOR}: {duration(time.step_seconds)} a step{epoch} "
        f"({work}, at {time.source}{left_out})."
    )


def judgement(plan: MemoryPlan, device: DeviceSpec) -> str:
    """Say whether a plan fits a device."""
    word = "fits" if plan.fits(device) else "does not fit"
    if plan.is_tight(device):
        word = f"fits, within the plan's own error of {TIGHT:.0%}"
    return f"{device.name}: {size(plan.total)} of {size(device.total_bytes)}: {word}."


def proposal_lines(proposals: Any) -> Iterator[str]:
    """Yield one line for each proposal, ready to paste."""
    for proposal in proposals:
        host = f", and {size(proposal.plan.host_bytes)} on the host" if proposal.plan.host_bytes else ""
        yield f"{proposal.flags}: {size(proposal.plan.total)}{host}, {'fits' if proposal.fits else 'not enough'}"


def as_json(report: PlanReport) -> dict[str, Any]:
    """Return the whole report as JSON values; sizes are bytes."""
    return {
        "model": report.model,
        "rows": report.note,
        "image_size": report.image_size,
        "choice": asdict(report.choice),
        "devices": [
            {
                "device": verdict.device.name,
                "device_bytes": verdict.device.total_bytes,
                "source": verdict.device.source,
                **_plan_values(verdict.plan),
                "fits": verdict.plan.fits(verdict.device),
                "time_estimate": None if verdict.time is None else _time_values(verdict.time),
                "proposals": [_proposal_values(proposal) for proposal in verdict.proposals],
            }
            for verdict in report.verdicts
        ],
    }


def _time_values(time: TimePlan) -> dict[str, Any]:
    return {
        "seconds_per_step": time.step_seconds,
        "seconds_per_epoch": time.epoch_seconds,
        "steps_per_epoch": time.steps,
        "flops_per_step": time.flops,
        "flops_per_second": time.rate,
        "padding": time.padding,
        "cached_features": time.cached_features,
        "source": time.source,
        "left_out": list(time.left_out),
    }


def _plan_values(plan: MemoryPlan) -> dict[str, Any]:
    return {"items": dict(plan.items), "total_bytes": plan.total, "host_bytes": plan.host_bytes}


def _proposal_values(proposal: Proposal) -> dict[str, Any]:
    return {"flags": proposal.flags, "fits": proposal.fits, **_plan_values(proposal.plan)}


@contextmanager
def explain_exhaustion(backend: Backend, what: str, advise: Callable[[], Verdict] | None = None) -> Iterator[None]:
    """Turn running out of memory within this context into one message with the plan's advice.

    Args:
        backend: knows its allocator's errors.
        what: what goes on, for example `training`.
        advise: plans the run that is under way; None where no training goes on.

    Raises:
        MemoryExhaustedError: the device's memory was not enough.
    """
    try:
        yield
    except Exception as error:
        if not backend.out_of_memory(error):
            raise
        lines = [f"Out of memory in {what}: {str(error).strip().partition(chr(10))[0].rstrip('.')}."]
        lines += ["Type --per_device_eval_batch_size 1, or half of what it is."] if advise is None else _advice(advise)
        raise MemoryExhaustedError("\n".join(lines)) from error


def _advice(advise: Callable[[], Verdict]) -> Iterator[str]:
    """Yield what the plan says about the run, and what would help."""
    try:
        verdict = advise()
    except UserError as error:
        yield f"No plan can be made for this run: {error}"
        return
    plan, device = verdict.plan, verdict.device
    parts = ", ".join(f"{name} {size(plan.items[name])}" for name in ITEMS if plan.items[name])
    yield f"The plan for this run is {size(plan.total)} of {size(device.total_bytes)} on {device.name}: {parts}."
    if plan.fits(device):
        yield "By the plan it fits: other processes may hold memory of the device. These need less:"
    else:
        yield "To make it fit:"
    yield from (f"  {line}" for line in proposal_lines(verdict.proposals))
