"""Which weights are trained: LoRA on exactly the chosen modules, or full weights part by part."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vlm_lora.config.run_config import TuningConfig
from vlm_lora.errors import ConfigError, ModelError
from vlm_lora.model.adapters.continued import merging
from vlm_lora.model.adapters.experts import expert_parameters, say_what_experts_cost
from vlm_lora.model.adapters.file_names import save_under_names_that_are_found
from vlm_lora.model.adapters.fully import keep_in_float32, modules_of, refuse_twice
from vlm_lora.model.adapters.new_tokens import (
    NewTokens,
    begin_rows,
    indices,
    keep_rows_in_float32,
    refuse_other_tables,
    save_rows_alone,
)
from vlm_lora.model.adapters.reach import describe_unreached
from vlm_lora.model.adapters.requirements import check_experts
from vlm_lora.model.adapters.starts import begin_with_weights, check_start, start_settings
from vlm_lora.model.adapters.targets import (
    Targets,
    adapted_weights,
    compact_regex,
    module_setting,
    resolve_targets,
)
from vlm_lora.model.audit import log_trainable
from vlm_lora.model.families import Family
from vlm_lora.model.parts import PARTS, Parts, count_parameters, find_parts, is_tied, say_what_is_tied

logger = logging.getLogger(__name__)


def apply_tuning(
    model: Any,
    family: Family,
    tuning: TuningConfig,
    *,
    revision: str | None = None,
    learning_rate: float | None = None,
    new_tokens: NewTokens | None = None,
) -> Any:
    """Attach LoRA, or freeze the parts that stay as they are, and log what is trained.

    LoRA weights are float32 even on a bfloat16 model (PEFT's default), so small updates are not lost.

    Args:
        model: a loaded model without an adapter.
        family: its family; one outside the table is found out by looking.
        tuning: what the user asked for.
        revision: of the base model; the adapter remembers it, so that it is loaded on the same weights.
        learning_rate: of parts without a rate of their own, for the logged table; None leaves rates out of it.
        new_tokens: that the tokenizer got, for which the embeddings have rows.

    Returns:
        A `PeftModel` for `lora`, the model itself for `none`.

    Raises:
        ConfigError: the targets select nothing, nothing is left to train, a part that does not train has a
            learning rate, or one of two tied parts is frozen and the other trained.
        ModelError: the model carries an adapter already.
    """
    if hasattr(model, "peft_config"):
        raise ModelError(
            f"{type(model.get_base_model()).__name__} carries an adapter already: it is trained on, or merged."
        )
    parts = find_parts(model, family)
    unreached = ""
    if tuning.peft_method == "lora":
        targets = resolve_targets(model, parts, tuning.lora_targets)
        unreached = describe_unreached(model, parts, targets)
        tuned = _attach_lora(model, parts, tuning, targets, revision, new_tokens)
    else:
        tuned = _freeze(model, parts, tuning)
    keep_statistics(tuned)
    _check_rates(tuned, parts, tuning)
    rates: dict[str, float] = {} if learning_rate is None else dict.fromkeys(map(str, PARTS), learning_rate)
    rates |= tuning.learning_rates
    log_trainable(tuned, parts, rates, below=unreached)
    return tuned


def continue_adapter(
    model: Any, family: Family, tuning: TuningConfig, folder: Path, *, learning_rate: float | None = None
) -> Any:
    """Let an adapter that was put on its base train on, in float32, and log what is trained.

    Args:
        model: a `PeftModel` with one adapter.
        family: its family.
        tuning: with the adapter's settings.
        folder: the adapter's.
        learning_rate: of parts without a rate of their own, for the logged table.

    Returns:
        The model.

    Raises:
        ConfigError: a part that does not train has a learning rate.
    """
    parts = find_parts(model, family)
    model.set_adapter("default")
    model.peft_config["default"].inference_mode = False
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    keep_statistics(model)
    _check_rates(model, parts, tuning)
    rates: dict[str, float] = {} if learning_rate is None else dict.fromkeys(map(str, PARTS), learning_rate)
    log_trainable(model, parts, {**rates, **tuning.learning_rates})
    logger.info(
        "LoRA goes on from the adapter %s as it is (rank %d, alpha %g, dropout %g, %d modules), with a new optimizer. "
        "For a new adapter on what it has learnt: %s",
        folder,
        tuning.lora_rank,
        tuning.lora_alpha,
        tuning.lora_dropout,
        len(adapted_weights(model)),
        merging(folder),
    )
    return model


def _attach_lora(
    model: Any,
    parts: Parts,
    tuning: TuningConfig,
    targets: Targets,
    revision: str | None,
    new_tokens: NewTokens | None,
) -> Any:
    from peft import LoraConfig, get_peft_model

    check_experts(tuning, targets)
    check_start(tuning, model, targets)
    fully = modules_of(model, parts, [part for part in PARTS if part in tuning.train_fully])
    refuse_twice(fully, targets.modules, tuning.lora_targets)
    if targets.parameters:
        everything = expert_parameters(model, parts)
        say_what_experts_cost(
            {name: everything[name] for name in targets.parameters},
            count=len(targets.modules),
            balance=tuning.router_aux_loss_coef,
        )
    selecting = module_setting(model, targets.modules)
    config = LoraConfig(
        **start_settings(tuning),
        lora_dropout=tuning.lora_dropout,
        target_modules=selecting,
        target_parameters=list(targets.parameters) or None,
        use_rslora=tuning.use_rslora,
        use_dora=tuning.use_dora,
        modules_to_save=fully or None,
        trainable_token_indices=indices(model, parts, new_tokens),
        ensure_weight_tying="embeddings" in tuning.train_fully and is_tied(model),
        bias="none",
        task_type="CAUSAL_LM",
        revision=revision,
    )
    if new_tokens is not None:
        refuse_other_tables(model)
        begin_rows(model, new_tokens)
    say_what_is_tied(model)
    named = compact_regex(model, targets.modules)
    tuned = get_peft_model(model, config)
    config.target_modules = selecting  # PEFT keeps a set of them, in no order, and shortens a long one its own way
    config.target_parameters = list(targets.parameters) or None
    base = Path(str(config.base_model_name_or_path))
    if base.is_dir():  # a relative path would find its base from one working directory only
        config.base_model_name_or_path = str(base.resolve())
    keep_in_float32(tuned)
    if new_tokens is not None:
        keep_rows_in_float32(tuned)
        save_rows_alone(tuned)
    save_under_names_that_are_found(tuned, tuning.lora_targets)
    _check_attached(tuned, targets)
    begin_with_weights(tuned, tuning)
    logger.info("LoRA of rank %d on %d modules: %s", tuning.lora_rank, len(targets.modules), named)
    return tuned


def _check_attached(tuned: Any, targets: Targets) -> None:
    """Make sure that LoRA sits where it was asked for, and nowhere else.

    Raises:
        ModelError: names what differs.
    """
    wanted = {*targets.modules, *targets.parameters}
    adapted = set(adapted_weights(tuned))
    if adapted != wanted:
        stray = sorted(adapted ^ wanted)
        raise ModelError(
            f"PEFT attached LoRA to {len(adapted)} modules instead of the {len(wanted)} chosen; they differ in "
            f"{', '.join(stray[:3])}. Give --lora_targets as a list of full module names, and please report the "
            "model."
        )


def _freeze(model: nn.Module, parts: Parts, tuning: TuningConfig) -> nn.Module:
    """Full weights: train the parts that are not frozen."""
    _refuse_half_of_a_pair(model, tuning)
    # Audio towers and the like never run on images and text.
    trained = {"other": False, **{part: not frozen for part, frozen in tuning.frozen.items()}}
    unused = []
    for name, parameter in model.named_parameters():
        wanted = trained[parts.part_of(name)]
        if wanted and parts.is_never_used(name):
            unused.append(name)
            wanted = False
        parameter.requires_grad_(wanted and parameter.is_floating_point())
    if unused:
        logger.info("%d parameters stay frozen: the model never reads them (%s, ...).", len(unused), unused[0])
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("--peft_method none: every part is frozen. Leave out one of the --freeze_* flags.")
    return model


def _refuse_half_of_a_pair(model: Any, tuning: TuningConfig) -> None:
    """Tied embeddings and head are one tensor: it trains, or it does not."""
    if is_tied(model) and tuning.frozen["embeddings"] != tuning.frozen["head"]:
        states = {
            part: f"--freeze_{part} {str(tuning.frozen[part]).lower()}"
            + (" (as the language model)" if getattr(tuning, f"freeze_{part}") is None else "")
            for part in ("embeddings", "head")
        }
        raise ConfigError(
            f"{states['embeddings']} and {states['head']}: embeddings and head of this model are one tensor "
            "(tie_word_embeddings). Type --freeze_embeddings --freeze_head to keep it as it is, or "
            "--freeze_embeddings false --freeze_head false to train it."
        )


def keep_statistics(model: nn.Module) -> int:
    """Make batch normalisation without trained weights normalise by the statistics it was loaded with.

    In training mode it would normalise by each batch's own and move its running ones, which no adapter saves: a
    vision tower of convolutions would be another one at the end. Whatever mode the model is put in, these layers are
    in evaluation mode when they run.

    Returns:
        How many layers there are.
    """
    frozen = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and not any(weight.requires_grad for weight in module.parameters())
    ]
    for module in frozen:
        module.register_forward_pre_hook(_as_loaded)
    if frozen:
        logger.info("Batch normalisation: %d frozen layers keep the statistics they were loaded with.", len(frozen))
    return len(frozen)


def _as_loaded(module: nn.Module, _: Any) -> None:
    module.eval()


def _check_rates(model: nn.Module, parts: Parts, tuning: TuningConfig) -> None:
    """Refuse a learning rate for a part that has no trainable weights: it would have no effect."""
    counts = count_parameters(model, parts)
    for part in PARTS:
        if part not in tuning.learning_rates or counts[part][0]:
            continue
        if part == "head" and tuning.peft_method == "none" and is_tied(model):
            raise ConfigError(
                "--head_learning_rate: the head of this model is the embeddings' tensor (tie_word_embeddings). Type "
                "--embeddings_learning_rate for both."
            )
        cure = f"--lora_targets with {part}" if tuning.peft_method == "lora" else f"--freeze_{part} false"
        raise ConfigError(
            f"--{part}_learning_rate: the {part} part has no trainable weights, so its rate would have no effect. "
            f"Leave it out, or type {cure} where this model has such weights."
        )
