"""What to change so that a run fits: each change planned again, in the order of what it costs the user."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vlm_lora.backend import DeviceSpec
from vlm_lora.engines.sharding import deepspeed_word
from vlm_lora.memory.plan import MemoryPlan
from vlm_lora.memory.planner import Choice, Planner

WORTH = 0.01
"""A change that saves less than this share of what the run itself needs is not proposed."""

_ENGINES = ("zero2", "zero3", "zero3_offload")


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """One change or several, and the plan with them."""

    flags: str
    """To paste behind the command, or in words what to do to the data."""
    choice: Choice
    plan: MemoryPlan
    fits: bool


def propose(planner: Planner, choice: Choice, device: DeviceSpec, *, four_bits: float | None = None) -> list[Proposal]:
    """Return single changes that help, in order, and if none is enough alone, changes on top of each other.

    Args:
        planner: plans the run's variations.
        choice: the run as it was asked for.
        device: what it shall fit.
        four_bits: bits a weight with `--load_in_4bit`; None where the device's backend does not have it.
    """
    now = planner.plan(choice, device)
    singles = list(_improvements(planner, choice, device, now, four_bits))
    if any(proposal.fits for proposal in singles):
        return singles
    return [*singles, *_combined(planner, choice, device, now, four_bits)]


def _combined(
    planner: Planner, choice: Choice, device: DeviceSpec, now: MemoryPlan, four_bits: float | None
) -> Iterator[Proposal]:
    """Apply one change after the other, each only if it helps what came before, until the run fits."""
    flags: list[str] = []
    for kind in _KINDS:
        best: Proposal | None = None
        for proposal in _improvements(planner, choice, device, now, four_bits, only=kind):
            if best is None or (proposal.fits and not best.fits) or proposal.plan.total < best.plan.total:
                best = proposal
            if proposal.fits:
                break
        if best is None:
            continue
        choice, now = best.choice, best.plan
        flags = [*(each for each in flags if not _replaces(best.flags, each)), best.flags]
        if len(flags) > 1:
            yield replace(best, flags=" ".join(flags))
        if best.fits:
            return


def _replaces(new: str, old: str) -> bool:
    """Whether two changes set the same flag."""
    return new.split()[0] == old.split()[0]


_KINDS = ("checkpointing", "batch", "engine", "pictures", "tuning", "bits")


def _improvements(
    planner: Planner,
    choice: Choice,
    device: DeviceSpec,
    now: MemoryPlan,
    four_bits: float | None,
    *,
    only: str | None = None,
) -> Iterator[Proposal]:
    for kind, flags, changed in _changes(planner, choice, device, four_bits):
        if only not in (None, kind):
            continue
        plan = planner.plan(changed, device)
        if now.total - plan.total > WORTH * now.of_the_run:
            yield Proposal(flags=flags, choice=changed, plan=plan, fits=plan.fits(device))


def _changes(
    planner: Planner, choice: Choice, device: DeviceSpec, four_bits: float | None
) -> Iterator[tuple[str, str, Choice]]:
    """Yield kind, flags and choice of every change that applies."""
    if not choice.checkpointing:
        yield "checkpointing", "--gradient_checkpointing", replace(choice, checkpointing=True)
    smaller = _smaller_batch(planner, choice, device)
    if smaller is not None:
        flags = (
            f"--per_device_train_batch_size {smaller.batch_size} --gradient_accumulation_steps {smaller.accumulation}"
        )
        yield "batch", flags, smaller
    if not device.is_cpu and choice.sharding.engine in ("", "deepspeed"):
        for word in _ENGINES:
            sharding = deepspeed_word(word)
            more = (sharding.stage, sharding.offload_weights) > (choice.sharding.stage, choice.sharding.offload_weights)
            whole = choice.weight_bits is None or not sharding.shares_weights  # 4-bit weights are not shared out
            # Stages 2 and 3 share out among processes; offload helps one process too.
            if more and whole and (choice.world_size > 1 or sharding.offload_weights):
                yield "engine", sharding.flag, replace(choice, sharding=sharding)
    if choice.picture_side == 1.0:
        half = replace(choice, picture_side=0.5)
        if planner.tokens(half) < planner.tokens(choice):
            words = f"(images at half their width and height: {planner.tokens(half)} tokens in the longest row)"
            yield "pictures", words, half
    if choice.tuning.peft_method == "none":
        lora = replace(
            choice.tuning, peft_method="lora", freeze_language=False, freeze_vision=True, freeze_projector=False
        )
        yield "tuning", "--peft_method lora", replace(choice, tuning=lora)
    elif four_bits is not None and choice.weight_bits is None and not choice.sharding.shares_weights:
        yield "bits", "--load_in_4bit", replace(choice, weight_bits=four_bits)


def _smaller_batch(planner: Planner, choice: Choice, device: DeviceSpec) -> Choice | None:
    """Return the largest smaller micro-batch that fits with the same global batch, else 1; None at 1 already."""
    sizes = [size for size in range(1, choice.batch_size) if choice.batch_size % size == 0]
    if not sizes:
        return None
    low, high = 0, len(sizes) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if planner.plan(choice.with_batch(sizes[middle]), device).fits(device):
            low = middle
        else:
            high = middle - 1
    return choice.with_batch(sizes[low])
