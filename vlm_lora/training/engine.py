"""What distributes the run: checked to be what was asked for, said aloud, and what it asks of the batches."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, register_fsdp_forward_method
from transformers import TrainerCallback

from vlm_lora.backend import Backend
from vlm_lora.errors import ConfigError
from vlm_lora.launch.placement import launcher_asks_for
from vlm_lora.model.families import Family
from vlm_lora.model.parts import base_of, decoder_layers, find_parts

logger = logging.getLogger(__name__)


def zero_stage(trainer: Any) -> int:
    """Return DeepSpeed's ZeRO stage, 0 without DeepSpeed."""
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return 0 if plugin is None else int(plugin.zero_stage)


def engine_of(arguments: Any) -> str:
    """Return the engine that the arguments ask for, as `checkpoints.ENGINES` names it."""
    if arguments.deepspeed_plugin is not None:
        return "DeepSpeed"
    return "FSDP" if arguments.fsdp or launcher_asks_for("fsdp", os.environ) else "no engine"


def shards_weights(trainer: Any) -> bool:
    """Say whether the processes hold parts of the weights, so that reading them is a step they take together."""
    return bool(trainer.is_fsdp_enabled) or zero_stage(trainer) == 3


@contextmanager
def generating(trainer: Any) -> Iterator[None]:
    """Let `generate` run on the trainer's model inside, whatever shards its weights; it must have run once before.

    FSDP gives a unit its weights where that unit's `forward` is called, and `generate` calls those of inner modules.
    DeepSpeed's ZeRO does it for every module.
    """
    if not trainer.is_fsdp_enabled:
        yield
    elif isinstance(trainer.model_wrapped, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(trainer.model_wrapped, recurse=False, writeback=False):
            yield
    else:
        register_fsdp_forward_method(trainer.model, "generate")
        try:
            yield
        finally:
            vars(trainer.model).pop("generate", None)


def let_go_of_weights(trainer: Any) -> None:
    """Let each process hold its own part of the weights alone again, as saving wants them.

    FSDP 2 does so behind a backward pass; an evaluation has none, and the outermost module keeps its weights for one.
    """
    for module in trainer.model.modules() if trainer.is_fsdp_enabled else ():
        if isinstance(module, FSDPModule):
            module.reshard()


def needs_images(trainer: Any, model: nn.Module, family: Family) -> bool:
    """Say whether every batch needs an image, lest processes wait for each other forever.

    That is so on several processes where weights are sharded, or where something trains that only images reach.
    """
    if trainer.args.world_size == 1:
        return False
    if shards_weights(trainer):
        return True
    parts = find_parts(model, family)
    return any(parts.needs_image(name) for name, p in model.named_parameters() if p.requires_grad)


def note_images(family: Family) -> None:
    """Say that batches without an image get one, and where that is not without effect."""
    logger.info("Batches without an image get a plain one, so that all processes do the same work.")
    if family.media_only_layers is not None:
        logger.warning(
            "This family lets a token that may see no image attend to all of them: the losses of rows without a "
            "image change by it, as they do next to a row with one."
        )


def refuse_other_engine(arguments: Any, trainer: Any) -> None:
    """Stop where FSDP or DeepSpeed was asked for and plain data parallelism would run.

    Raises:
        ConfigError: names the flag.
    """
    for flag, active in (("fsdp", trainer.is_fsdp_enabled), ("deepspeed", trainer.is_deepspeed_enabled)):
        if (getattr(arguments, flag) or launcher_asks_for(flag, os.environ)) and not active:
            raise ConfigError(
                f"--{flag} was asked for and is not what would run: this device or launcher does not offer it. "
                "Leave it out, or start with accelerate launch on GPUs."
            )


def refuse_lost_weights(arguments: Any, model: nn.Module, family: Family, backend: Backend) -> None:
    """Stop where ZeRO-3 would have let go of frozen weights by the time that checkpointing computes with them again.

    DeepSpeed before 0.19.3 lets go of them while a layer is recomputed; weights that train it keeps. Torch then ends
    the first step at a CheckpointError that names neither.

    Raises:
        ConfigError: says what to type.
    """
    plugin = getattr(arguments, "deepspeed_plugin", None)
    if plugin is None or int(plugin.zero_stage) != 3 or backend.keeps_frozen_weights():
        return
    layers = [base_of(model).get_submodule(name) for name in decoder_layers(model, find_parts(model, family))]
    if any(not parameter.requires_grad for layer in layers for parameter in layer.parameters()):
        raise ConfigError(
            f"--gradient_checkpointing with ZeRO-3 and frozen weights: DeepSpeed {version('deepspeed')} lets go of "
            "them before they are used again. Type --deepspeed zero2, leave --gradient_checkpointing out, or update "
            "DeepSpeed to 0.19.3 or later, unless it is a vendor's own build."
        )


class EngineCheck(TrainerCallback):
    """At the first step: the wrapper around the model must be the engine that was asked for.

    A wrong launch line gives plain data parallelism, or copies that do not know of each other, with losses that look
    right.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check, and say what runs.

        Raises:
            ConfigError: another engine wraps the model, or none does on several processes.
        """
        trainer = self._trainer
        wrapped, processes = trainer.model_wrapped, args.world_size
        # accelerate compiles last, around the engine.
        inside = getattr(wrapped, "_orig_mod", wrapped)
        kind, compiled = type(inside).__name__, "" if inside is wrapped else ", compiled,"
        wanted: tuple[str, ...] = ()
        if trainer.is_deepspeed_enabled:
            wanted = ("DeepSpeedEngine",)
        elif trainer.is_fsdp_enabled:
            wanted = ("FSDP", "FullyShardedDataParallel")  # versions 2 and 1
        elif processes > 1:
            wanted = ("DistributedDataParallel",)
        if wanted and not kind.startswith(wanted):
            raise ConfigError(
                f"The model is wrapped by {kind}, and {wanted[0]} was asked for on {processes} processes. Start with "
                "`vlm-lora launch`, or leave --deepspeed and --fsdp out."
            )
        stage = f" (ZeRO stage {zero_stage(trainer)})" if trainer.is_deepspeed_enabled else ""
        if processes > 1 or wanted:
            logger.info("Engine: %s%s%s on %d processes.", kind, stage, compiled, processes)
