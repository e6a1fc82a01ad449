"""What a run stands on, put together from its session: model and tuning, the trainer, and what answers questions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lora.batching.blank import blank_conversation
from vlm_lora.batching.collator import Collator
from vlm_lora.batching.ordering.rows import FillableRows
from vlm_lora.batching.packing.order import PackedRows
from vlm_lora.batching.row_table import RowTable
from vlm_lora.batching.shapes import ShapePlan
from vlm_lora.config.scoring import figure_of
from vlm_lora.data.dataset import Conversations, Splits
from vlm_lora.data.split_parts import split_parts
from vlm_lora.preflight.check import Prepared
from vlm_lora.session import Preprocessing, Session, wants_static_shapes
from vlm_lora.training.feeding.packing import Packing, plan_packing
from vlm_lora.training.feeding.strategy import SETTING, Feeding
from vlm_lora.training.feeding.streaming import training_rows
from vlm_lora.training.feeding.workers import fit_workers
from vlm_lora.training.observers import Observers

if TYPE_CHECKING:
    from vlm_lora.evaluation.answering import ValidationAnswers
    from vlm_lora.evaluation.generation import Answerer
    from vlm_lora.metrics.scorer import Scorer
    from vlm_lora.training.checkpoints.resumption import Resumption
    from vlm_lora.training.identity.record import RunIdentity

logger = logging.getLogger(__name__)


def load_for_training(session: Session, preprocessing: Preprocessing) -> Any:
    """Load the base, let the backend adapt it, and attach LoRA, train an adapter on, or freeze parts."""
    from transformers import set_seed

    from vlm_lora.model.checkpointing import enable_checkpointing
    from vlm_lora.model.loading import adapter_folder
    from vlm_lora.model.tuning import apply_tuning, continue_adapter
    from vlm_lora.serving.servable import facts_of, in_one_line
    from vlm_lora.training.engine import refuse_lost_weights

    base = _load_base(session, preprocessing)
    # The trainer seeds itself, but LoRA's A matrices are drawn before it exists; and after the base is loaded,
    # which draws as many numbers as the installed transformers likes.
    set_seed(session.arguments.seed)
    tuning, rate = session.run.tuning, session.arguments.learning_rate
    folder = adapter_folder(session.run.model)
    if folder is not None:
        model = continue_adapter(base, preprocessing.family, tuning, folder, learning_rate=rate)
    else:
        model = apply_tuning(
            base,
            preprocessing.family,
            tuning,
            revision=session.run.model.model_revision,
            learning_rate=rate,
            new_tokens=preprocessing.new_tokens,
        )
    if session.run.tuning.peft_method == "lora":
        logger.info("Serving: %s.", in_one_line(facts_of(model, Path(session.arguments.output_dir))))
    if session.run.raw.get("gradient_checkpointing"):
        refuse_lost_weights(session.arguments, model, preprocessing.family, session.backend)
        enable_checkpointing(model, preprocessing.family)
    return model


def load_for_run(session: Session, preprocessing: Preprocessing) -> Any:
    """Load what a run trains, or what it only measures."""
    load = load_for_training if session.arguments.do_train else load_for_answers
    return load(session, preprocessing)


def load_for_answers(session: Session, preprocessing: Preprocessing) -> Any:
    """Load a model, with its adapter where the folder is one, for evaluation and questions."""
    from vlm_lora.model.quantization import note_training_precision

    note_training_precision(session.run.model)
    return _load_base(session, preprocessing).eval()


def _load_base(session: Session, preprocessing: Preprocessing) -> Any:
    from vlm_lora.model.loading import load_model

    return load_model(
        session.run.model, model_kwargs=session.model_keywords, adapt=partial(_adapt, session, preprocessing)
    )


def _adapt(session: Session, preprocessing: Preprocessing, base: Any) -> Any:
    """Check what was loaded, before an adapter is put on it, and let the backend adapt it."""
    from vlm_lora.model.adapters.new_tokens import grow
    from vlm_lora.model.parts import find_parts
    from vlm_lora.model.processor.image_size import match_model
    from vlm_lora.model.quantization import check_quantized, find_layers
    from vlm_lora.model.stored_checks import say_loaded
    from vlm_lora.model.stored_weights import stored_weights

    match_model(base, preprocessing.processor)
    if preprocessing.rows is not None:
        grow(base, find_parts(base, preprocessing.family), preprocessing.rows)
    model = session.run.model
    if model.load_in_4bit:
        check_quantized(
            base, find_layers(preprocessing.config, preprocessing.family, trust_remote_code=model.trust_remote_code)
        )
    elif stored_weights(preprocessing.config) is not None:
        say_loaded(base)
    return session.backend.adapt_model(base)


def identify_run(session: Session, prepared: Prepared, feeding: Feeding, resumption: Resumption) -> RunIdentity | None:
    """Return the record of a run that trains; None for one that does not. Rank 0 writes either one's.

    Raises:
        ConfigError: the rows are not those of the run that it goes on from.
    """
    from vlm_lora.training.identity.opening import Opened, identify
    from vlm_lora.training.identity.repeat import say_repeated

    opened = Opened(
        run=session.run,
        values=session.values,
        arguments=session.arguments,
        backend=session.backend,
        settings={**session.settings, SETTING: feeding.strategy.value},
        splits=prepared.splits,
        tables=prepared.tables,
    )
    identity = identify(opened, resumption)
    if session.run.from_run is not None and session.arguments.process_index == 0:
        say_repeated(opened, identity)
    return identity if session.arguments.do_train else None


def build_run_trainer(
    session: Session,
    preprocessing: Preprocessing,
    splits: Splits,
    model: Any,
    groups: Mapping[str, Any],
    feeding: Feeding,
    resumption: Resumption,
    observers: Observers,
    *,
    tables: Mapping[str, RowTable],
    identity: RunIdentity | None = None,
    scorer: Scorer | None = None,
) -> Any:
    """Put the trainer together, with what the run's settings, engine and checkpoint ask of it.

    Args:
        session: the run.
        preprocessing: how rows become batches.
        splits: the rows.
        model: with its tuning.
        groups: by split, the rows that may share a batch; empty where any may.
        feeding: in which order the training rows come, or in which packs.
        resumption: the checkpoint that the run goes on from, if any, and what changes with it.
        observers: are told what happens.
        tables: what is known of the rows, by data set; empty where none was read.
        identity: what the run's checkpoints keep; None where it saves none.
        scorer: scores generated answers; None where none are generated.

    Raises:
        ConfigError: the settings contradict each other.
    """
    from vlm_lora.training.stopping import stops_without_progress
    from vlm_lora.training.trainer import build_trainer

    kwargs = _trainer_keywords(session, preprocessing, splits, model, feeding)
    trainer = build_trainer(session.backend, model=model, kwargs=kwargs, row_groups=groups)
    trainer.add_callback(_telling(session, splits, feeding, trainer, observers))
    stops_without_progress(trainer, session.run.scoring, observers)
    if identity is not None:
        _carry_over(trainer, identity, resumption)
    if session.arguments.do_train:
        _set_rates(session, preprocessing, trainer)
    trainer.balance = session.run.tuning.router_aux_loss_coef
    trainer.feeding = feeding
    trainer.packs = None if feeding.packing is None else feeding.packing.inputs(model)
    trainer.loader_timeout = session.run.batching.dataloader_timeout
    trainer.finite.skipped.limit = session.run.guards.skipped_in_a_row
    _fit_engine(session, preprocessing, trainer)
    _keep_features(session, preprocessing, splits, tables, trainer, before=resumption.features)
    if scorer is not None and splits.validation is not None:
        trainer.answering = _answers_of(session, preprocessing, splits.validation, scorer, trainer)
    return trainer


def _trainer_keywords(
    session: Session, preprocessing: Preprocessing, splits: Splits, model: Any, feeding: Feeding
) -> dict[str, Any]:
    """Return what the trainer's constructor takes besides the model."""
    from vlm_lora.model.adapters.beginning import KeepBeginning
    from vlm_lora.model.audit import GradientAudit

    rows = training_rows(session.run, session.arguments, splits)
    validation = splits.validation
    callbacks = [GradientAudit(model, preprocessing.family)]
    if session.run.tuning.begins_with_weights:
        callbacks.append(KeepBeginning(model))
    fit_workers(session.arguments, session.values, train=len(rows or ()), validation=len(validation or ()))
    return {
        "args": session.arguments,
        "data_collator": preprocessing.collator,
        "train_dataset": None if rows is None else PackedRows(rows) if feeding.packing else FillableRows(rows),
        "eval_dataset": None if validation is None else FillableRows(validation),
        "processing_class": preprocessing.processor,
        "callbacks": callbacks if session.arguments.do_train else [],
        **session.backend.trainer_keywords(session.run),
    }


def _carry_over(trainer: Any, identity: RunIdentity, resumption: Resumption) -> None:
    """Let the trainer write the run's record into checkpoints, and put settings in force where it goes on from one."""
    from vlm_lora.training.checkpoints.carried_over import CarriedOver

    trainer.carried = CarriedOver(identity, resumption.changes)
    if resumption.checkpoint is not None:
        trainer.add_callback(trainer.carried.callback())


def _set_rates(session: Session, preprocessing: Preprocessing, trainer: Any) -> None:
    """Give parts of the model learning rates of their own, where some were given."""
    from vlm_lora.model.parts import find_parts
    from vlm_lora.training.rates import PartRates

    if session.run.tuning.learning_rates:
        trainer.part_rates = PartRates(
            find_parts(trainer.model, preprocessing.family), session.run.tuning.learning_rates
        )
        trainer.part_rates.check_engine(trainer)


def _fit_engine(session: Session, preprocessing: Preprocessing, trainer: Any) -> None:
    """Make sure that the engine in use is the one that was asked for, and that all processes do the same work."""
    from vlm_lora.training.engine import EngineCheck, needs_images, note_images, refuse_other_engine

    refuse_other_engine(session.arguments, trainer)
    if session.arguments.do_train:
        trainer.add_callback(EngineCheck(trainer))
    if needs_images(trainer, trainer.model, preprocessing.family):
        # In place: a backend's trainer may have put something of its own around the collator.
        preprocessing.collator.require_images()
        note_images(preprocessing.family)


def _telling(session: Session, splits: Splits, feeding: Feeding, trainer: Any, observers: Observers) -> Any:
    """Return the callback that tells the run's observers what its trainer does."""
    from vlm_lora.training.telling import Telling

    packing = feeding.packing
    epoch = packing.plan.count if packing else None if splits.stream is not None else len(splits.train or ())
    unit = "packs" if packing else "rows"
    return Telling(trainer, observers, device=session.backend.probe().device, unit=unit, epoch=epoch)


def build_for_features(
    session: Session,
    preprocessing: Preprocessing,
    prepared: Prepared,
    groups: Mapping[str, Any],
    feeding: Feeding,
    start: Resumption,
) -> Any | None:
    """Load the model and put the trainer together, to make features with it ahead of the run.

    The arguments are those of `build_run_trainer`.

    Returns:
        The trainer; None where the settings allow no features: no weights are loaded then.
    """
    from vlm_lora.report.memory import explain_exhaustion
    from vlm_lora.training.feeding.ahead import wants_features

    trains = session.arguments.do_train
    static_shapes = wants_static_shapes(session.run, session.backend)
    if not wants_features(session.run, preprocessing.family, trains=trains, static_shapes=static_shapes):
        return None
    with explain_exhaustion(session.backend, "loading the model"):
        model = load_for_run(session, preprocessing)
        return build_run_trainer(
            session,
            preprocessing,
            prepared.splits,
            model,
            groups,
            feeding,
            start,
            Observers([]),
            tables=prepared.tables,
        )


def _keep_features(
    session: Session,
    preprocessing: Preprocessing,
    splits: Splits,
    tables: Mapping[str, RowTable],
    trainer: Any,
    *,
    before: str,
) -> None:
    """Let the trainer keep features of a frozen vision tower, where the settings want it and it pays; record it.

    Raises:
        ConfigError: `--cache_vision_features on`, and it cannot be.
    """
    from vlm_lora.training.feeding.vision_features import SETTING as FEATURES
    from vlm_lora.training.feeding.vision_features import use_features

    parts = split_parts(splits)
    use_features(
        session.run,
        trainer,
        preprocessing.family,
        preprocessing.collator,
        static_shapes=wants_static_shapes(session.run, session.backend),
        tables=tables,
        encode=lambda name, row: preprocessing.encoder.encode(parts[name][row]),
        before=before,
    )
    if trainer.carried is not None:
        trainer.carried.settle(FEATURES, "off" if trainer.features is None else "on")
        if trainer.is_world_process_zero():
            trainer.carried.write(Path(session.arguments.output_dir))  # the run's own record says it as well


def collator_of(preprocessing: Preprocessing, packing: Packing | None, plan: ShapePlan | None = None) -> Collator:
    """Return what makes batches of rows, of planned shapes, and of packs."""
    from vlm_lora.batching.packing.collation import PackCollator

    style, pad = preprocessing.family.rendering, preprocessing.tokenizer.pad_token_id
    if packing is None:
        return Collator(preprocessing.encoder, style, pad_token_id=pad, plan=plan)
    return PackCollator(
        preprocessing.encoder, style, pad_token_id=pad, plan=plan, shape=packing.shape, blank=packing.blank
    )


def plan_packs(
    session: Session, preprocessing: Preprocessing, prepared: Prepared, *, static_shapes: bool
) -> Packing | None:
    """Plan the packs of a run that packs."""
    run, arguments = session.run, session.arguments
    if not (run.batching.packing and arguments.do_train):
        return None
    blank = preprocessing.encoder.encode(blank_conversation()) if static_shapes else None
    return plan_packing(run, arguments, prepared.splits, prepared.tables, preprocessing.family, blank=blank)


def _answers_of(
    session: Session, preprocessing: Preprocessing, validation: Conversations, scorer: Scorer, trainer: Any
) -> ValidationAnswers:
    """Return what answers validation rows at each evaluation of a run, and scores the answers."""
    from vlm_lora.evaluation.answering import Processes, ValidationAnswers
    from vlm_lora.training.engine import shards_weights

    arguments, scoring = session.arguments, session.run.scoring
    several = arguments.world_size > 1
    return ValidationAnswers(
        answerer=answerer_of(session, preprocessing, trainer.model),
        rows=validation,
        scorer=scorer,
        needed=figure_of(arguments.metric_for_best_model),
        batch_size=scoring.generation_batch_size or arguments.per_device_eval_batch_size,
        samples=scoring.eval_generate_samples,
        groups=trainer.row_groups.get("validation", ()),
        processes=Processes(
            count=arguments.world_size,
            number=arguments.process_index,
            device=arguments.device,
            share_weights=several and shards_weights(trainer),
        ),
        shows_progress=not arguments.disable_tqdm,
    )


def answerer_of(
    session: Session,
    preprocessing: Preprocessing,
    model: Any,
    max_new_tokens: int | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> Answerer:
    """Return what generates answers as the run's settings say, greedily unless `sampling` says how to draw."""
    from vlm_lora.evaluation.generation import Answerer

    return Answerer(
        model=model,
        collator=preprocessing.collator,
        tokenizer=preprocessing.tokenizer,
        max_new_tokens=max_new_tokens or session.run.generation.max_new_tokens,
        generation_kwargs={**session.backend.generation_keywords(), **(sampling or {})},
        boxes=preprocessing.boxes,
    )
