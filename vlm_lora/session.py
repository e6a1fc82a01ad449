"""What every verb opens first: configuration checked against its backend, and the preprocessing of rows."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from vlm_lora.backend import Backend, installed, select
from vlm_lora.batching.blank import blank_conversation
from vlm_lora.batching.boxes.conventions import GRIDS, BoxConvention, convention_for, explain
from vlm_lora.batching.collator import Collator
from vlm_lora.batching.encoding import RowEncoder
from vlm_lora.config.aliases import canonical_name
from vlm_lora.config.argument_fields import arguments_like
from vlm_lora.config.resolution import resolve
from vlm_lora.config.run_config import RunConfig
from vlm_lora.data.dataset import Conversations, each_data_set
from vlm_lora.data.images.loader import ImageLimits
from vlm_lora.engines.build_locks import clear_left_locks
from vlm_lora.engines.zero import refuse_unchecked_updates
from vlm_lora.engines.zero_numbers import check_numbers, with_file_numbers
from vlm_lora.errors import ConfigError, ModelError, RenderingError
from vlm_lora.launch.placement import by_accelerate
from vlm_lora.launch.roll_call import introduce, limit_waiting
from vlm_lora.model.adapters.continued import refuse_partitioned
from vlm_lora.model.adapters.new_tokens import NewTokens, add_tokens, rows_of_adapter
from vlm_lora.model.adapters.requirements import check_before_loading
from vlm_lora.model.families import Family, family_of
from vlm_lora.model.folder_faults import template_place
from vlm_lora.model.loading import check_weights_there, load_config, load_processor
from vlm_lora.model.processor.image_size import describe_size, match_config
from vlm_lora.model.processor.placeholder import check_placeholder
from vlm_lora.model.processor.trained_boxes import with_trained_boxes
from vlm_lora.model.quantization import check_request, partitioning_engine
from vlm_lora.model.stored_checks import check_stored, check_stored_run
from vlm_lora.model.stored_weights import say_stored
from vlm_lora.model.terminators import eos_token_ids
from vlm_lora.model.vocabulary import check_vocabulary
from vlm_lora.training.arguments import CHECKPOINTING, FORCED_ARGUMENTS, check_arguments, default_arguments
from vlm_lora.training.checkpoints.run_settings import effective_settings
from vlm_lora.training.feeding.strategy import SETTING
from vlm_lora.training.kernels import with_liger

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Session:
    """Configuration checked against the backend that will run it."""

    run: RunConfig
    backend: Backend
    arguments: Any
    values: Mapping[str, Any]

    @cached_property
    def model_keywords(self) -> Mapping[str, Any]:
        """Keywords that the backend loads the model with, asked for once: it logs the reason of each."""
        config = load_config(self.run.model)
        check_stored_run(self.run, config, self.backend, self.arguments)
        say_stored(config)
        return self.backend.model_keywords(self.run, config, self.arguments)

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The run's effective settings; choices that were left open are settled by its model and hardware.

        Take them before the trainer has the arguments, which it may change.
        """
        run = self.run
        settled: dict[str, Any] = {
            "backend": self.backend.name,
            "static_shapes": wants_static_shapes(run, self.backend),
            SETTING: run.raw.get(SETTING),  # None: as a checkpoint has it, or as the rows' lengths say
        }
        if run.model.model_name_or_path is not None:
            keywords = self.model_keywords
            text = load_config(run.model).get_text_config()
            settled |= {
                "dtype": keywords["torch_dtype"],
                "attn_implementation": keywords["attn_implementation"],
                "bnb_4bit_compute_dtype": getattr(
                    keywords.get("quantization_config"), "bnb_4bit_compute_dtype", run.model.bnb_4bit_compute_dtype
                ),
                "max_length": run.batching.max_length or getattr(text, "max_position_embeddings", None),
            }
        return effective_settings(run, self.arguments, settled=settled, values=self.values)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What turns rows into batches. It needs the model's folder, not its weights."""

    config: Any
    family: Family
    processor: Any
    tokenizer: Any
    encoder: RowEncoder
    collator: Collator
    longest: int | None
    """Longest row in tokens."""
    eos_token_ids: frozenset[int]
    """Tokens that end an answer."""
    image_size: str
    """How large images are shown, in words."""
    boxes: BoxConvention
    """How the model counts and writes boxes."""
    new_tokens: NewTokens | None = None
    """What `--new_tokens` has added to the tokenizer."""
    rows: int | None = None
    """How many rows the embeddings get for tokens that are learnt, or that the adapter has learnt; None: as now."""


def open_session(run: RunConfig) -> Session:
    """Choose the backend, check every key against it, and let it prepare the process.

    Variables that the backend wants were set before torch was imported, by the command line or by `called`.
    """
    backend, probe = select(run.backend)
    run = with_trained_boxes(run)
    logger.info("Backend: %s on %s.", backend.name, probe.device)
    run, values = resolve(run, backend.arguments_class())
    os.environ.update(run.environment)  # completed by keys that stand for variables
    backend.prepare(run)
    values = with_file_numbers(values)
    check_arguments(values)
    values = with_liger(values, backend)
    if run.accelerate_launch_args and not by_accelerate(os.environ):
        logger.warning(
            "accelerate_launch_args are for the launcher and have no effect here: %s. "
            "To use them: vlm-lora launch train --config FILE",
            run.accelerate_launch_args,
        )
    passed = {name: value for name, value in values.items() if canonical_name(name) not in CHECKPOINTING}
    defaults = default_arguments(backend.arguments_class(), values, lora=run.tuning.peft_method == "lora")
    if run.data.streaming:
        defaults["dataloader_num_workers"] = 1  # each reads the whole stream
    given = {"ddp_timeout": 1800, **{key: value for key, value in values.items() if value is not None}}
    limit_waiting(given["ddp_timeout"])
    if values.get("deepspeed") and os.environ.get("LOCAL_RANK", "0") == "0":  # the others' words are not shown
        clear_left_locks(run.guards.stall_timeout)  # its first words build parts of it, and wait for who does
    if passed.get("ddp_backend") and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        # One command for one process and for many; torch would look for a group that nobody has made.
        logger.info("--ddp_backend %s: there is one process, which has nobody to talk to.", passed.pop("ddp_backend"))
    arguments = backend.arguments(run, {**defaults, **passed, **FORCED_ARGUMENTS})
    introduce()
    if run.guards.on_nonfinite == "skip_step" and arguments.deepspeed_plugin is not None:
        refuse_unchecked_updates(arguments.deepspeed_plugin.deepspeed_config)
    check_numbers(arguments)
    check_request(run, backend, arguments)
    return Session(run=run, backend=backend, values=values, arguments=arguments)


def resolve_anywhere(run: RunConfig) -> tuple[RunConfig, dict[str, Any], type]:
    """Check a run's keys where the hardware that it names need not be: return it, the checked keys and their class.

    Without a vendor's software its class is not here either. transformers' own stands in, with the vendor's default
    optimizer; keys that only the vendor's class has are left out, of which a memory plan reads none.

    Raises:
        ConfigError: unknown keys, wrong values, contradictions.
    """
    run = with_trained_boxes(run)
    named = installed().get(run.backend)
    if named is None or named.probe().usable:
        chosen = select(run.backend)[0]
        run, values = resolve(run, chosen.arguments_class())
        return run, {**_default_optimizer(chosen), **values}, chosen.arguments_class()
    from transformers import TrainingArguments

    own = named.declaration.flags
    run, values = resolve(
        replace(run, raw={key: value for key, value in run.raw.items() if key not in own}), TrainingArguments
    )
    return run, {**_default_optimizer(named), **values}, TrainingArguments


def _default_optimizer(backend: Backend) -> dict[str, str]:
    return {"optim": backend.traits.optimizer} if backend.traits.optimizer else {}


def resolve_for_reading(run: RunConfig) -> tuple[RunConfig, dict[str, Any], type]:
    """As `resolve_anywhere`, for what reads rows and trains nothing: by the class's fields as its source has them.

    Importing the class itself takes seconds: peft, and with it quantizers and compilers, come along.
    """
    named = installed().get(run.backend)
    if named is None or named.probe().usable:
        read = arguments_like(select(run.backend)[0].name)
        if read is not None:
            return *resolve(with_trained_boxes(run), read), read
    return resolve_anywhere(run)


def wants_static_shapes(run: RunConfig, backend: Backend | None = None) -> bool:
    """Say whether batch shapes are planned; without a backend, by the one that the run names or would choose."""
    if run.batching.static_shapes is not None:
        return run.batching.static_shapes
    return (backend or _named(run)).traits.static_shapes


def _named(run: RunConfig) -> Backend:
    """Return the backend that a run names, whether or not this machine has its hardware, or would choose."""
    return installed().get(run.backend) or select(run.backend)[0]


def check_stored_anywhere(run: RunConfig, preprocessing: Preprocessing, *, trains: bool) -> None:
    """Refuse a base in few bits that a run could not use, before its rows are read for it.

    Raises:
        BackendError, ConfigError, ModelError: as `check_stored`.
    """
    check_stored(run, preprocessing.config, _named(run), trains=trains)


def open_preprocessing(run: RunConfig) -> Preprocessing:
    """Open the model's configuration and processor, and build encoder and collator from them."""
    if run.model.model_name_or_path is None:
        raise ConfigError("--model_name_or_path is missing: a Hub id such as google/gemma-3-4b-it, or a folder.")
    config = load_config(run.model)
    if run.model.model_type not in (None, config.model_type):
        raise ConfigError(f"--model_type {run.model.model_type}: the model's configuration says {config.model_type}.")
    family = family_of(config)
    processor = load_processor(run.model)
    match_config(config, processor)
    shown = describe_size(processor)
    logger.info("Images are shown %s.", shown)
    tokenizer = processor.tokenizer
    learnt = rows_of_adapter(run.model)
    check_vocabulary(config, family, tokenizer, trust_remote_code=run.model.trust_remote_code, learnt=frozenset(learnt))
    new_tokens = None if run.tuning.new_tokens is None else add_tokens(tokenizer, run.tuning.new_tokens)
    longest = run.batching.max_length or getattr(config.get_text_config(), "max_position_embeddings", None)
    ends = eos_token_ids(run.model, config, tokenizer)
    boxes = convention_for(config.model_type, run.data.box_coordinates)
    encoder = RowEncoder(
        processor,
        family.rendering,
        eos_token_ids=ends,
        max_length=longest,
        on_overflow=run.batching.on_overflow,
        boxes=boxes,
        image_limits=ImageLimits.of(run.data),
    )
    try:
        encoder.check_template()
    except RenderingError as error:
        raise ModelError(f"{template_place(tokenizer.name_or_path)}: {error}") from error
    check_placeholder(config, processor, lambda: encoder.encode(blank_conversation()).input_ids.tolist())
    if run.batching.on_overflow != "error":
        logger.info(
            "Rows of more than %s tokens: --on_overflow %s, in training and evaluation alike (a perplexity is that of "
            "the rows as they were made to fit).",
            longest,
            run.batching.on_overflow,
        )
    collator = Collator(encoder, family.rendering, pad_token_id=tokenizer.pad_token_id)
    return Preprocessing(
        config=config,
        family=family,
        processor=processor,
        tokenizer=tokenizer,
        encoder=encoder,
        collator=collator,
        longest=longest,
        eos_token_ids=ends,
        image_size=shown,
        boxes=boxes,
        new_tokens=new_tokens,
        rows=len(tokenizer) if learnt or new_tokens else None,
    )


def open_for_run(session: Session) -> Preprocessing:
    """As `open_preprocessing`; where the run trains, what its adapter asks of model and engine is found out as well."""
    preprocessing = open_preprocessing(session.run)
    check_weights_there(session.run.model)
    check_stored_run(session.run, preprocessing.config, session.backend, session.arguments)
    if session.arguments.do_train:
        engine = partitioning_engine(session.arguments)
        refuse_partitioned(session.run, engine)
        check_before_loading(
            session.run.tuning,
            preprocessing.config,
            preprocessing.family,
            backend=session.backend,
            partitioned=engine,
            packed=session.run.batching.packing,
            trust_remote_code=session.run.model.trust_remote_code,
        )
    return preprocessing


def say_boxes(data: Conversations | None, preprocessing: Preprocessing) -> None:
    """Say how boxes are written, where the data has any."""
    if any(member.schema.names_places for member in each_data_set(data)):
        logger.info("Boxes: %s.", explain(preprocessing.boxes, preprocessing.config.model_type))
    asked = [text for member in each_data_set(data) for text in member.schema.questions_for_boxes]
    mistaken = next((text for text in asked if "pixel" in text.casefold()), None)
    if mistaken is not None and preprocessing.boxes.unit in GRIDS:
        logger.warning(
            "The question %r says pixels, and boxes are counted as %s. Set questions are asked as they are: write "
            "{box_format} in a task file instead, leave --box_prompt out, or type --box_coordinates pixels.",
            mistaken,
            preprocessing.boxes.text,
        )
