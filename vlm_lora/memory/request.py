"""From a run's checked keys and what `vlm-lora plan` was asked to what is planned, and on which devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from enum import Enum
from typing import Any

from vlm_lora.backend import Backend, DeviceSpec
from vlm_lora.batching.packing.plan import pack_length
from vlm_lora.config.declaration import asking_for
from vlm_lora.config.run_config import RunConfig
from vlm_lora.engines.sharding import read_sharding
from vlm_lora.errors import ConfigError, nearest
from vlm_lora.memory.plan import MemoryPlan, weight_bits
from vlm_lora.memory.planner import Choice
from vlm_lora.memory.proposals import Proposal
from vlm_lora.memory.sample import Assumption
from vlm_lora.memory.speed import Order, TimePlan

ALL, HERE = "all", "here"


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What the verb itself takes; everything else is the run's."""

    devices: str = HERE
    """`here`, `all`, or names joined by commas."""
    world_size: int = 1
    rows: int = 64
    """Rows of the data to look at."""
    images: int = 1
    """Images of a row, where no data is named."""
    assumed_size: str = "1024x1024"
    """Width and height of each of them in pixels."""
    answer_tokens: int = 64

    def assumption(self, tokens: int | None) -> Assumption:
        """Return what a row is taken to be without data.

        Raises:
            ConfigError: the length was not set, or a size is none.
        """
        if tokens is None:
            raise ConfigError(
                "Nothing says how long the rows are: type --dataset_name to measure them, or --max_length N (with "
                "--images N, --assumed_size WIDTHxHEIGHT, --answer_tokens N) to assume it."
            )
        width, _, height = self.assumed_size.partition("x")
        if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
            raise ConfigError(
                f"--assumed_size {self.assumed_size}: must be WIDTHxHEIGHT in pixels, for example 1024x768."
            )
        return Assumption(
            tokens=tokens,
            answer_tokens=self.answer_tokens,
            pictures=self.images,
            picture_size=(int(width), int(height)),
        )

    def check(self) -> None:
        """Refuse counts that are none. Raises ConfigError."""
        for flag, least in (("world_size", 1), ("rows", 1), ("images", 0), ("answer_tokens", 1)):
            if getattr(self, flag) < least:
                raise ConfigError(f"--{flag} {getattr(self, flag)}: must be {least} or more.")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The plan of one device, and what helps where it does not fit."""

    device: DeviceSpec
    plan: MemoryPlan
    proposals: Sequence[Proposal]
    time: TimePlan | None = None
    """None for a run that is out of memory."""


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """Everything that `vlm-lora plan` shows."""

    model: str
    choice: Choice
    note: str
    """The rows, in words."""
    image_size: str
    """How large images are shown, in words."""
    verdicts: Sequence[Verdict]


def choose_devices(
    backends: Mapping[str, Backend], words: str, *, named: str = "auto"
) -> list[tuple[Backend, DeviceSpec]]:
    """Return the devices that were asked for, each with the backend it belongs to.

    Args:
        backends: by name.
        words: of `--device`.
        named: `--backend`: `here` means a device of it.

    Raises:
        ConfigError: no such device; the message lists those there are.
    """
    known = _once([(backend, device) for backend in backends.values() for device in backend.planner.devices()], named)
    if words == ALL:
        return known
    if words == HERE:
        # An accelerator before the host.
        own = [pair for pair in known if named not in backends or pair[0].name == named]
        here = sorted((pair for pair in own if pair[1].is_here), key=lambda pair: pair[1].is_cpu)
        if not here:
            raise ConfigError(
                f"{asking_for(named)}: this machine has none of its "
                f"devices. Type which to plan for: {' or '.join(f'--device {device.name}' for _, device in own)}."
            )
        return here[:1]
    names = {device.name.lower(): (backend, device) for backend, device in known}
    found = []
    for word in words.split(","):
        name = word.strip().lower()
        # `H100` where there is one of that name with one memory size.
        close = [key for key in names if key.partition("-")[0] == name]
        if name not in names and len(close) != 1:
            raise ConfigError(
                f"--device {word}: allowed are {ALL}, {HERE}, {', '.join(device.name for _, device in known)}."
                f"{nearest(name, names)}"
            )
        found.append(names[name] if name in names else names[close[0]])
    return found


def _once(pairs: Sequence[tuple[Backend, DeviceSpec]], named: str) -> list[tuple[Backend, DeviceSpec]]:
    """Return each kind of device once: where two backends have it, the named one's, else that which can be used."""
    chosen: dict[str, tuple[Backend, DeviceSpec]] = {}
    for backend, device in pairs:
        taken = chosen.get(device.name)
        wins = taken is None or backend.name == named
        if wins or (
            taken is not None and taken[0].name != named and not taken[0].probe().usable and backend.probe().usable
        ):
            chosen[device.name] = (backend, device)
    return list(chosen.values())


def read_choice(
    run: RunConfig, values: Mapping[str, Any], arguments_class: type, *, config: Any, world_size: int
) -> Choice:
    """Return what the run asks for, with the defaults of the arguments class; `config` is the model's.

    Raises:
        ConfigError: the file of --deepspeed cannot be read.
    """
    return Choice(
        tuning=run.tuning,
        optimizer=str(_value(values, arguments_class, "optim")),
        batch_size=int(_value(values, arguments_class, "per_device_train_batch_size")),
        accumulation=int(_value(values, arguments_class, "gradient_accumulation_steps")),
        checkpointing=bool(run.raw.get("gradient_checkpointing")),
        world_size=world_size,
        sharding=read_sharding(values),
        weight_bits=weight_bits(run.model, config),
    )


def read_order(choice: Choice, run: RunConfig, values: Mapping[str, Any], *, longest: int) -> Order:
    """Return how the run's rows come together in batches.

    Args:
        choice: what is planned.
        run: says whether rows are packed.
        values: the checked keys of the arguments class: whether they are grouped.
        longest: tokens of the longest row.
    """
    strategy, batching = values.get("train_sampling_strategy"), run.batching
    word = getattr(strategy, "value", strategy)
    grouped = None if word is None else word == "group_by_length"
    return Order(
        batch_size=choice.batch_size,
        accumulation=choice.accumulation,
        world_size=choice.world_size,
        grouped=True if values.get("group_by_length") else grouped,
        pack_length=pack_length(batching.pack_length, batching.max_length, longest) if batching.packing else None,
    )


def simulated_attention(asked: str) -> str | None:
    """Return what stands for `--attn_implementation`: kernels of other packages keep what sdpa's fused ones keep."""
    return asked if asked in ("sdpa", "eager") else None


def _value(values: Mapping[str, Any], arguments_class: type, name: str) -> Any:
    if values.get(name) is not None:
        value = values[name]
    else:
        found: Field[Any] = next(field for field in fields(arguments_class) if field.name == name)
        value = found.default_factory() if found.default_factory is not MISSING else found.default
    return value.value if isinstance(value, Enum) else value
