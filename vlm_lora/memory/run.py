"""The memory plan of one run: before it starts, and when it has run out of memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from vlm_lora.backend import Backend, DeviceSpec, Precision
from vlm_lora.batching.collator import Collator
from vlm_lora.batching.encoding import RowEncoder
from vlm_lora.batching.shapes import RowShape
from vlm_lora.config.run_config import RunConfig
from vlm_lora.memory.packs import as_packs
from vlm_lora.memory.plan import bits_of
from vlm_lora.memory.planner import Choice, Planner
from vlm_lora.memory.proposals import Proposal, propose
from vlm_lora.memory.request import PlanReport, PlanRequest, Verdict, read_choice, read_order, simulated_attention
from vlm_lora.memory.sample import Sample, assume_rows, longest_rows, sample_rows
from vlm_lora.model.adapters.new_tokens import NewTokens
from vlm_lora.model.adapters.requirements import check_before_loading
from vlm_lora.model.attention import check_attention
from vlm_lora.model.families import Family
from vlm_lora.model.features.obstacles import obstacle_in_settings
from vlm_lora.model.quantization import check_training
from vlm_lora.model.stored_checks import check_stored
from vlm_lora.model.stored_weights import stored_weights

logger = logging.getLogger(__name__)

ROWS = 64
"""Rows that are looked at."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The run that is planned."""

    run: RunConfig
    values: Mapping[str, Any]
    """The checked keys of the backend's arguments class that were given."""
    config: Any
    """The model's configuration."""
    family: Family
    encoder: RowEncoder
    collator: Collator
    data: Any
    """The training rows; None where none were named."""
    new_tokens: NewTokens | None = None
    """Tokens whose rows are trained; they are the last of the tokenizer."""
    image_size: str
    """How large images are shown, in words."""
    shapes: Callable[[], Sequence[RowShape]] = tuple
    """Returns what each of them contributes to its batch's shape; nothing where they were not all read before."""

    def sample(self, *, count: int, side: float) -> Sample:
        """Return the longest of all rows where they are known, else of `count` rows, with images at a share of sides.

        Raises:
            DataError: a row cannot be encoded.
        """
        shapes = self.shapes() if side == 1.0 else ()
        if shapes:
            return self.packed(longest_rows(self.encoder, self.data, shapes))
        return self.packed(sample_rows(self.encoder, self.data, count=count, picture_side=side))

    def packed(self, sample: Sample) -> Sample:
        """Return what batches are made of where the run packs: packs of the rows of a sample."""
        return as_packs(sample, self.run.batching, self.family.rendering)

    def reads_features(self, backend: Backend) -> bool:
        """Say whether epochs after the first read images' features on a backend instead of running the tower."""
        asked, static = self.run.batching.cache_vision_features, self.run.batching.static_shapes
        static_shapes = backend.traits.static_shapes if static is None else static
        if asked == "off" or obstacle_in_settings(self.run, self.family, static_shapes=static_shapes, trains=True):
            return False
        tuning = self.run.tuning
        # --train_fully of either is an obstacle in the settings.
        on_tower = tuning.peft_method == "lora" and not tuning.target_words <= {"language", "experts"}
        return not on_tower and (asked == "on" or (self.values.get("num_train_epochs") or 3) > 1)

    def planner(
        self, backend: Backend, samples: Callable[[float], Sample], announce: Callable[[str], object]
    ) -> Planner:
        """Return a planner of this run and its variations on a backend's devices.

        Raises:
            ModelError: the attention that was set is not there for this model.
        """
        check_attention(self.run.model.attn_implementation, self.config)

        def precision(choice: Choice, device: DeviceSpec) -> Precision:
            run = replace(self.run, tuning=choice.tuning)
            engine = choice.sharding.engine == "deepspeed"
            return backend.planner.precision(run, {**self.values, "deepspeed": engine or None}, device)

        return Planner(
            config=self.config,
            family=self.family,
            collator=self.collator,
            samples=samples,
            precision=precision,
            attention=simulated_attention(self.run.model.attn_implementation),
            fixed_shapes=backend.traits.static_shapes,
            trust_remote_code=self.run.model.trust_remote_code,
            new_tokens=self.new_tokens,
            rows=None if self.new_tokens is None else max(self.new_tokens.ids) + 1,
            announce=announce,
        )

    def propose(self, planner: Planner, choice: Choice, device: DeviceSpec, backend: Backend) -> list[Proposal]:
        """Return what to change, 4-bit weights among it where the device's backend has them."""
        kinds = backend.traits.quantization if stored_weights(self.config) is None else ()
        there = self.run.model.bnb_4bit_quant_type in kinds
        return propose(planner, choice, device, four_bits=bits_of(self.run.model) if there else None)


def plan_run(
    subject: Subject,
    request: PlanRequest,
    choice: Choice,
    devices: Sequence[tuple[Backend, DeviceSpec]],
    announce: Callable[[str], object],
) -> PlanReport:
    """Plan a run on each device; where it does not fit, say what would help.

    Args:
        subject: the run.
        request: what the verb was asked for.
        choice: what is planned first.
        devices: each with its backend.
        announce: told what is simulated before it is.

    Raises:
        BackendError, ConfigError: neither data nor a length was given, or --load_in_4bit cannot be honoured.
        ModelError: the model's step cannot be simulated.
    """

    @lru_cache
    def samples(side: float) -> Sample:
        if subject.data is not None:
            return subject.sample(count=request.rows, side=side)
        assumed = request.assumption(subject.run.batching.max_length).scaled(side)
        return subject.packed(assume_rows(subject.encoder, assumed))

    for backend, _ in devices:
        check_training(subject.run, backend, trains=True, partitioned=choice.sharding.shares_weights)
        engine = _engine_in_words(choice) if choice.sharding.shares_weights else ""
        check_stored(subject.run, subject.config, backend, trains=True, partitioned=engine)
        check_before_loading(
            subject.run.tuning,
            subject.config,
            subject.family,
            backend=backend,
            partitioned=engine,
            packed=subject.run.batching.packing,
            trust_remote_code=subject.run.model.trust_remote_code,
        )
    planners: dict[str, Planner] = {}
    verdicts = []
    for backend, device in devices:
        planner = planners.setdefault(backend.name, subject.planner(backend, samples, announce))
        plan = planner.plan(choice, device)
        proposals = [] if plan.fits(device) else subject.propose(planner, choice, device, backend)
        order = read_order(choice, subject.run, subject.values, longest=max(samples(1.0).read.lengths))
        time = planner.time(choice, device, order, cached_features=subject.reads_features(backend))
        verdicts.append(Verdict(device=device, plan=plan, proposals=proposals, time=time))
    model = str(subject.run.model.model_name_or_path)
    return PlanReport(
        model=model, choice=choice, note=samples(1.0).note, image_size=subject.image_size, verdicts=verdicts
    )


def _engine_in_words(choice: Choice) -> str:
    return "FSDP" if choice.sharding.engine == "fsdp" else "ZeRO-3"


def advise(subject: Subject, arguments: Any, backend: Backend) -> Verdict:
    """Plan a run that is under way, on the device that it runs on, with everything that would need less."""
    on_cpu = backend.device().type == "cpu"
    device = next(each for each in backend.planner.devices() if each.is_here and each.is_cpu == on_cpu)
    choice = read_choice(
        subject.run, subject.values, type(arguments), config=subject.config, world_size=arguments.world_size
    )
    planner = subject.planner(
        backend,
        lru_cache(lambda side: subject.sample(count=ROWS, side=side)),
        logger.info,
    )
    plan = planner.plan(choice, device)
    return Verdict(device=device, plan=plan, proposals=subject.propose(planner, choice, device, backend))
