"""DeepSpeed and FSDP behind the training arguments: what must be set before, and said to them about the model."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vlm_lora.engines.zero import offloads_optimizer, zero_settings, zero_stage
from vlm_lora.errors import ConfigError
from vlm_lora.launch.launching import free_port
from vlm_lora.launch.placement import launcher_asks_for

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

logger = logging.getLogger(__name__)

WRAPPED_BY_LAUNCHER = "FSDP_TRANSFORMER_CLS_TO_WRAP"
"""Where `accelerate launch` puts the classes to shard as units."""


BY_LAYER, BY_SIZE = "TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP"
"""accelerate's names for what is a unit of FSDP."""


def asked(engine: str, values: Mapping[str, Any]) -> bool:
    """Say whether an engine was asked for, by a flag or by `accelerate launch`."""
    return bool(values.get(engine)) or launcher_asks_for(engine, os.environ)


def switched(fsdp: Any) -> Any:
    """Return `--fsdp true` and `--fsdp false` as the switch that they mean; transformers reads them as options."""
    text = str(fsdp).lower()
    return True if text in ("true", "1", "on", "yes") else "" if text in ("false", "0", "off", "no") else fsdp


def engine_arguments(values: Mapping[str, Any], *, on_card: bool) -> dict[str, Any]:
    """Return the arguments that an engine needs, and tell DeepSpeed where there is no GPU.

    Args:
        values: the arguments, precision settled.
        on_card: whether this run is on an accelerator.

    Raises:
        ConfigError: a configuration that cannot be honoured.
    """
    if not on_card:
        # accelerate imports DeepSpeed wherever it is installed; untold, it warns that it found no GPU.
        os.environ["DS_ACCELERATOR"] = "cpu"
    fsdp = {"fsdp": switched(values["fsdp"])} if values.get("fsdp") is not None else {}
    if not asked("deepspeed", values):
        return fsdp
    if not on_card and _sees_gpus():
        raise ConfigError("--use_cpu and --deepspeed: DeepSpeed takes the GPUs of this machine. Leave one of them out.")
    if "RANK" not in os.environ:
        # One process that nobody launched: DeepSpeed would look for MPI.
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": free_port()}
        os.environ.update({name: str(number) for name, number in alone.items()}, MASTER_ADDR="127.0.0.1")
    given = values.get("deepspeed")
    settings = zero_settings(given, bf16=bool(values.get("bf16")), fp16=bool(values.get("fp16"))) if given else None
    if not on_card:
        # With it accelerate would silently run plain data parallelism.
        os.environ.pop("ACCELERATE_USE_CPU", None)
    return {**fsdp, "deepspeed": settings} if settings else fsdp


def _sees_gpus() -> bool:
    import torch

    return torch.cuda.is_available()


def start_process_group(arguments: TrainingArguments, *, on_card: bool) -> None:
    """Let DeepSpeed know of all processes before any weights exist: ZeRO-3 splits them while they are loaded."""
    plugin = arguments.deepspeed_plugin
    if plugin is None:
        return
    if zero_stage(plugin.deepspeed_config) == 3:
        # accelerate's own flags and files leave it off, and the saved weights would be empty.
        plugin.deepspeed_config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
    arguments.device  # noqa: B018 - sets up the process group
    if not on_card:
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo", verbose=False)


def shard_layers(arguments: TrainingArguments, layers: Iterable[str]) -> None:
    """Make FSDP shard the model layer by layer, where it is asked for and nobody named the classes.

    transformers' `_no_split_modules` also names classes that are not in the model, which FSDP refuses.

    Args:
        arguments: the training arguments.
        layers: class names of the model's repeated layers.
    """
    names = ",".join(sorted(set(layers)))
    plugin = getattr(arguments, "fsdp_plugin_args", None)  # 4.55 hands its settings on through the environment only
    if plugin is not None:
        _shard_by(plugin, arguments.fsdp_config, names)
    elif asked("fsdp", {}) and not os.environ.get(WRAPPED_BY_LAUNCHER):
        os.environ[WRAPPED_BY_LAUNCHER] = names
        logger.info("FSDP shards by layer: %s.", names)


def offloads(arguments: TrainingArguments) -> bool:
    """Say whether DeepSpeed keeps optimizer states in host memory."""
    plugin = arguments.deepspeed_plugin
    return plugin is not None and offloads_optimizer(plugin.deepspeed_config)


def offloading_trainer() -> type[Trainer]:
    """Return a trainer whose AdamW is DeepSpeed's for the CPU: torch's is several times slower there."""
    import transformers
    from transformers.training_args import OptimizerNames

    class Trainer(transformers.Trainer):
        """transformers' trainer with DeepSpeed's AdamW for states in host memory."""

        @staticmethod
        def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, dict[str, Any]]:
            """Return class and keyword arguments; other optimizers than AdamW stay as they were asked for."""
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            chosen, kwargs = transformers.Trainer.get_optimizer_cls_and_kwargs(args, model)
            if args.optim not in (OptimizerNames.ADAMW_TORCH, OptimizerNames.ADAMW_TORCH_FUSED):
                return chosen, kwargs
            kept = {name: kwargs[name] for name in ("lr", "betas", "eps")}
            return DeepSpeedCPUAdam, {**kept, "adamw_mode": True}

    return Trainer


def _shard_by(plugin: dict[str, Any], given: Mapping[str, Any], names: str) -> None:
    """Fill in what accelerate is not told of an `--fsdp_config`: the classes, or that their size decides.

    Raises:
        ConfigError: units by size under FSDP 2.
    """
    policy, least = given.get("auto_wrap_policy"), given.get("min_num_params", 0)
    if plugin["fsdp_version"] == 2:
        if policy == BY_SIZE:
            raise ConfigError(
                f"auto_wrap_policy {BY_SIZE} in --fsdp_config: FSDP 2 cannot shard the list of layers, which is such a "
                'unit. Leave it out (layers are the units), or add "version": 1.'
            )
        if least:
            logger.warning("min_num_params %d has no effect: FSDP 2 shards by layer.", least)
    elif least and policy is None and not given.get("transformer_layer_cls_to_wrap"):
        # transformers passes the number on with this policy alone, and takes another by default.
        plugin.update(auto_wrap_policy=BY_SIZE, min_num_params=least)
        logger.info("FSDP shards by size: units of %d weights or more.", least)
    if plugin["auto_wrap_policy"] == BY_LAYER and not plugin.get("transformer_cls_names_to_wrap"):
        plugin["transformer_cls_names_to_wrap"] = names
        logger.info("FSDP shards by layer: %s.", names)
