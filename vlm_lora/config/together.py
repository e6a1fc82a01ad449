"""Settings that contradict each other by what was typed alone, so that nothing need be opened to say so."""

from __future__ import annotations

from collections.abc import Iterator

from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.scoring import faults
from vlm_lora.errors import ConfigError, Refusals

ORDER = "train_sampling_strategy"
GROUPED = "group_by_length"
SHAPES_OF_STREAM = (
    "--streaming true: batch shapes are planned from all rows, and a stream is not read before training. Type "
    "--static_shapes false (hardware that compiles each new shape then compiles more often), or leave --streaming out."
)


def check_together(run: RunConfig, *, steps: bool = True, refused: Refusals | None = None) -> None:
    """Refuse settings that a training cannot have together, whatever model, data and hardware are.

    Args:
        run: its `raw` under canonical names; keys of the trainer may be missing from it.
        steps: whether steps are made, of whose number a stream says nothing, or it is only looked at.
        refused: gathers what is wrong; None raises it.

    Raises:
        ConfigError: names the settings, the reason and what to type.
    """
    gathered = refused or Refusals()
    for fault in _contradictions(run, steps=steps and "max_steps" not in gathered.names):
        gathered.note(ConfigError(fault))
    if refused is None:
        gathered.raise_any()


def _contradictions(run: RunConfig, *, steps: bool) -> Iterator[str]:
    yield from faults(run.scoring, run.raw)
    packing, length = run.batching.packing, run.batching.pack_length
    if length is not None and not packing:
        yield f"--pack_length {length} is for --packing true: add it, or leave it out."
    if run.guards.nonfinite_limit is not None and run.guards.on_nonfinite == "stop":
        yield (
            f"--nonfinite_limit {run.guards.nonfinite_limit} is for --on_nonfinite skip_step: add it, or leave it out."
        )
    grouped = run.raw.get(ORDER) == GROUPED
    if packing and grouped:
        yield (
            f"--packing true fills its packs with rows of all lengths, so --{ORDER} {GROUPED} has no place beside it. "
            "Leave one of them out."
        )
    if run.data.streaming:
        yield from _of_stream(run, grouped=grouped, steps=steps)


def _of_stream(run: RunConfig, *, grouped: bool, steps: bool) -> Iterator[str]:
    """Yield what needs to know the rows of a stream before it is read."""
    if run.batching.packing:
        yield (
            "--packing true does not go with --streaming true: packs are planned from the lengths of all rows, and a "
            "stream is not read before. Leave one of them out."
        )
    if grouped:
        yield (
            f"--{ORDER} {GROUPED} does not go with --streaming true: how long rows are is known once all were read, "
            f"and a stream is not read before training. Leave one of the two out, or type --{ORDER} random."
        )
    if run.batching.static_shapes:
        yield SHAPES_OF_STREAM
    if run.batching.image_cache == "on":
        yield (
            "--image_cache on does not go with --streaming true: a stream reads each image once, and may have more "
            "than a disk holds. Leave one of them out."
        )
    if not steps:
        return
    if run.batching.on_overflow == "drop":
        yield (
            "--on_overflow drop does not go with --streaming true: rows are dropped before training, and a stream is "
            "not read before. Type --on_overflow shrink_images or trim_turns, or leave --streaming out."
        )
    if (run.raw.get("max_steps") or 0) <= 0:
        yield (
            "--streaming true needs --max_steps: nothing but reading all of a stream says how long it is. Type for "
            "example --max_steps 1000; a stream that ends before begins anew."
        )


def refuse_shapes_of_stream() -> None:
    """Refuse to plan batch shapes of a stream; some hardware would have them planned without being asked.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(SHAPES_OF_STREAM)
