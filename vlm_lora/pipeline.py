"""The table of contents: configuration -> data -> batches -> model -> training -> evaluation -> report.

Each function is one verb of the command line. Order matters: the backend is prepared before any model
exists, and everything that can be wrong without weights is found before they are loaded.

What only some verbs need of models and trainers is imported where it is used: it brings peft with it, and with peft
whatever is installed of bitsandbytes and compilers, which reading data should not wait for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lora.assembly import (
    answerer_of,
    build_for_features,
    build_run_trainer,
    collator_of,
    identify_run,
    load_for_answers,
    load_for_run,
    plan_packs,
)
from vlm_lora.backend import installed
from vlm_lora.batching.shape_survey import survey_shapes
from vlm_lora.config.resolution import write_resolved
from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.together import check_together, refuse_shapes_of_stream
from vlm_lora.config.values import is_true
from vlm_lora.data.conversation import Conversation, ImageSource, RowSource, single_question
from vlm_lora.data.dataset import Splits, load_splits
from vlm_lora.deploy.handover import Handover
from vlm_lora.engines.zero_numbers import agreeing_schedule, with_file_numbers
from vlm_lora.errors import ConfigError
from vlm_lora.evaluation.held_out import warn_of_trained_rows, with_trained_split
from vlm_lora.evaluation.places import refuse_other_results, with_own_folder
from vlm_lora.launch.stop_signals import StopSignals, stop_signals
from vlm_lora.model.adapters.continued import with_adapters_settings
from vlm_lora.model.features.obstacles import refuse_early
from vlm_lora.preflight.check import Prepared, known_rows, prepare_rows, read_rows, report_on, shapes_of
from vlm_lora.preflight.figures import DataReport
from vlm_lora.preflight.image_cache import with_image_cache
from vlm_lora.preflight.parallel_map import ParallelMap
from vlm_lora.preflight.sampled_epochs import draws_known, epochs_by_keys, sampled_epochs
from vlm_lora.report.model_card import write_model_card
from vlm_lora.report.preview import Preview, ShownRow
from vlm_lora.report.run_page.at_end import RunPage
from vlm_lora.report.trackers import Trackers
from vlm_lora.session import (
    Preprocessing,
    Session,
    check_stored_anywhere,
    open_for_run,
    open_preprocessing,
    open_session,
    resolve_anywhere,
    resolve_for_reading,
    say_boxes,
    wants_static_shapes,
)
from vlm_lora.training.arguments import check_arguments
from vlm_lora.training.checkpoints.run_record import note_end
from vlm_lora.training.feeding.packing import Packing, check_packing
from vlm_lora.training.feeding.strategy import Feeding, Strategy, check_known, choose_feeding, strategy_of
from vlm_lora.training.feeding.whole_steps import check_first_step
from vlm_lora.training.guards.folder_lock import FolderLock
from vlm_lora.training.inference_only import say_left_out, without_engine
from vlm_lora.training.meeting import agreeing
from vlm_lora.training.observers import EndReason, Observers, RunLog, RunObserver
from vlm_lora.training.outputs import check_adapter_settings, claim_folder, save_final, write_results
from vlm_lora.training.run_state import RunStateFile

if TYPE_CHECKING:
    from vlm_lora.evaluation.generation import Answerer, Reply
    from vlm_lora.memory.request import PlanReport, PlanRequest
    from vlm_lora.memory.run import Subject
    from vlm_lora.training.checkpoints.resumption import Resumption
    from vlm_lora.training.feeding.ahead import KeptAhead

logger = logging.getLogger(__name__)


def train(
    run: RunConfig,
    observers: Sequence[RunObserver] = (),
    show: Callable[[Mapping[str, Any]], object] = lambda results: None,
) -> dict[str, Any]:
    """Train, evaluate and write everything to `output_dir`; return the figures of `all_results.json`.

    Observers are told what happens, after the run's own log; `show` gets the figures before the folder is handed over.
    """
    noted, handover = RunStateFile(), Handover()
    told = Observers([RunLog(), noted, RunPage(), Trackers(), *observers])
    from vlm_lora.training.guards.room import explained

    with stop_signals() as stops, FolderLock() as lock, told.until_end(), stops.heard(), explained(lambda: lock.folder):
        stops.end_within = run.end_within
        stops.before_hard_end = partial(noted.ended, EndReason.SIGNAL)
        results = _train(run, told, lock, stops, handover)
    show(results)
    handover.carry_out()
    return results


def _train(
    run: RunConfig, observers: Observers, lock: FolderLock, stops: StopSignals, handover: Handover
) -> dict[str, Any]:
    """As `train`; the lock is not taken yet."""
    from vlm_lora.evaluation.measuring import measure
    from vlm_lora.evaluation.scorer import scorer_for
    from vlm_lora.memory.run import advise
    from vlm_lora.report.memory import explain_exhaustion
    from vlm_lora.training.checkpoints.resumption import look_for_checkpoint
    from vlm_lora.training.signals import ending_after_training, leaving_together

    session = _open_run(run)
    run, arguments, folder = session.run, session.arguments, Path(session.arguments.output_dir)
    if arguments.process_index == 0:
        lock.take(folder)
    resumption = agreeing(arguments, lambda: look_for_checkpoint(run, arguments, lambda: session.settings))
    _check_purpose(run, arguments, handover)
    claim_folder(run, arguments, resumption.checkpoint, begins_again=resumption.begins_again, writes=False)
    splits = load_splits(
        run.data, need_train=arguments.do_train, need_validation=arguments.do_eval or arguments.eval_on_start
    )
    if splits.stream is not None and wants_static_shapes(session.run, session.backend):
        refuse_shapes_of_stream()
    scorer = scorer_for(run, arguments, splits.validation)
    claim_folder(run, arguments, resumption.checkpoint, begins_again=resumption.begins_again)
    observers.started(run, arguments)  # not before the folder is this run's, where they may write
    prepared, preprocessing, groups, feeding = _read_and_order(session, splits, resumption, observers)
    if not arguments.do_train:
        warn_of_trained_rows(run, prepared.splits, prepared.tables)
    identity = identify_run(session, prepared, feeding, resumption)
    oom_advice = partial(advise, _subject(run, session.values, preprocessing, prepared), arguments, session.backend)
    with explain_exhaustion(session.backend, "loading the model", oom_advice):
        model = load_for_run(session, preprocessing)
    trainer = build_run_trainer(
        session,
        preprocessing,
        prepared.splits,
        model,
        groups,
        feeding,
        resumption,
        observers,
        tables=prepared.tables,
        identity=identity,
        scorer=scorer,
    )
    trainer.before_saving = lock.check
    if trainer.is_world_process_zero():
        write_resolved(folder / ("run_config.yaml" if arguments.do_train else "eval_config.yaml"), run, session.values)
    results: dict[str, Any] = {}
    with ending_after_training(trainer, stops):
        if arguments.do_train:
            with stops.deferring(), explain_exhaustion(session.backend, "training", oom_advice):
                results |= _fit(session, trainer, resumption, observers, stops)
        if arguments.do_eval:
            with leaving_together(trainer, stops), explain_exhaustion(session.backend, "evaluation"):
                results |= _recorded(folder, "eval", measure(trainer, prepared.splits.validation), trainer)
    _end(folder, session, preprocessing, trainer, results)
    return results


def _end(
    folder: Path, session: Session, preprocessing: Preprocessing, trainer: Any, results: Mapping[str, Any]
) -> None:
    """Write what a run leaves behind besides weights and results, and say what it met."""
    run, arguments = session.run, session.arguments
    preprocessing.encoder.say_damage()
    if arguments.do_train and trainer.is_world_process_zero():
        write_model_card(folder, run, arguments, results, preprocessing, steps=trainer.state.global_step)
    if arguments.should_save:
        note_end(folder)


def _check_purpose(run: RunConfig, arguments: Any, handover: Handover) -> None:
    """Refuse what has no place in a training, or in a run that only evaluates, and say what has no effect there."""
    if arguments.do_train:
        run.tuning.refuse_what_has_no_effect()
        check_together(run)
    else:
        refuse_other_results(Path(arguments.output_dir), run)
        say_left_out(run)
    handover.check(run, arguments)


def _open_run(run: RunConfig) -> Session:
    """Open the session of a run that trains, evaluates or both, with the image backend that its record keeps."""
    from vlm_lora.training.checkpoints.resumption import with_kept_backend

    trains = is_true(run.raw.get("do_train"))
    run = (
        with_adapters_settings(run) if trains else without_engine(with_own_folder(with_trained_split(run)), shared=True)
    )
    session = open_session(with_adapters_settings(run))
    if not (session.arguments.do_train or session.arguments.do_eval):
        raise ConfigError("Nothing to do: type --do_train, --do_eval, or both.")
    kept = agreeing(session.arguments, lambda: with_kept_backend(session.run, session.arguments))
    return replace(session, run=kept)


def ask(run: RunConfig, *, images: Sequence[ImageSource], prompt: str) -> str:
    """Answer one question about the given images with a model or adapter folder."""
    question = single_question(images, prompt, run.data.system_prompt, RowSource(file="--image and --prompt"))
    return open_answerer(run, [question]).answer([question])[0]


def open_answerer(
    run: RunConfig, questions: Sequence[Conversation], sampling: Mapping[str, Any] | None = None
) -> Answerer:
    """Load a model to ask; a bad image among the questions is found before."""
    session = open_session(without_engine(run))
    preprocessing = open_preprocessing(session.run)
    _ = [preprocessing.encoder.encode_prompt(question) for question in questions]
    model = load_for_answers(session, preprocessing).to(session.backend.device())
    return answerer_of(session, preprocessing, model, sampling=sampling)


def preview(run: RunConfig, *, rows: int) -> Preview:
    """Encode the first rows of the data as training would."""
    run, _, _ = resolve_for_reading(run)
    everything = replace(run.data, validation_fraction=0.0)
    data = load_splits(everything, need_train=True, need_validation=False).train
    preprocessing = open_preprocessing(run)
    first = range(min(rows, len(data))) if data is not None else range(0)
    say_boxes(data, preprocessing)
    encoded = [preprocessing.encoder.encode_kept(data[index], keep_images=True) for index in first if data is not None]
    shown = [ShownRow(row=row, tokenizer=preprocessing.tokenizer) for row in encoded if row is not None]
    return Preview(rows=shown, image_size=preprocessing.image_size)


def dry_run(run: RunConfig) -> list[ShownRow]:
    """Encode the first training rows as training would; with the model, add its loss and its answer on each."""
    from vlm_lora.evaluation.losses import RowScorer

    asked = run.dry_run_options
    session = None
    if asked.no_model:
        run, values, _ = resolve_anywhere(run)
        check_arguments(values)
    else:
        # One process and a few rows: what shards a model over several has nothing to do here.
        session = open_session(without_engine(run))
        run = session.run
    data = load_splits(run.data, need_train=True, need_validation=False).train
    preprocessing = open_preprocessing(run)
    assert data is not None  # need_train
    say_boxes(data, preprocessing)
    rows = [data[index] for index in range(min(asked.dry_run_samples, len(data)))]
    encoded = [preprocessing.encoder.encode_kept(row, keep_images=True) for row in rows]
    kept = [(row, seen) for row, seen in zip(rows, encoded, strict=True) if seen is not None]
    shown = [ShownRow(row=seen, tokenizer=preprocessing.tokenizer) for _, seen in kept]
    if session is None:
        return shown
    model = load_for_answers(session, preprocessing).to(session.backend.device())
    score = RowScorer(model, preprocessing.collator)
    shown = [replace(one, loss=score(one.row)) for one in shown]
    if not asked.dry_run_generate:
        return shown
    answerer = answerer_of(session, preprocessing, model, asked.dry_run_max_new_tokens)
    return [
        _answered(one, row, answerer.reply([row])[0], preprocessing) for one, (row, _) in zip(shown, kept, strict=True)
    ]


def _answered(shown: ShownRow, row: Conversation, reply: Reply, preprocessing: Preprocessing) -> ShownRow:
    from vlm_lora.evaluation.generation import accepted_answers

    boxes = reply.boxes(preprocessing.boxes, bare=reply.prompt.answer is not None)
    return replace(
        shown, generated=reply.text, accepted=accepted_answers(row, reply.prompt.answer), generated_boxes=boxes
    )


def check(run: RunConfig, *, workers: int | None, show_progress: bool) -> DataReport:
    """Read every row once, as `train` with the same flags would, and report what they are; needs no weights."""
    run, values, arguments_class = resolve_for_reading(run)
    trains, measured = (is_true(values.get(name, True)) for name in ("do_train", "do_eval"))
    splits = load_splits(run.data, need_train=trains, need_validation=measured)
    static_shapes = wants_static_shapes(run)
    epochs = epochs_by_keys(values, arguments_class, static_shapes=static_shapes)
    preprocessing = open_preprocessing(run)
    check_stored_anywhere(run, preprocessing, trains=trains)
    preprocessing = with_image_cache(run, splits, preprocessing, epochs=epochs)
    say_boxes(splits.train or splits.validation, preprocessing)
    parallel = ParallelMap(workers=workers, show_progress=show_progress, timeout=run.batching.dataloader_timeout)
    read = read_rows(run, splits, preprocessing, parallel=parallel, epochs=epochs, static_shapes=static_shapes)
    preprocessing.encoder.say_damage()
    return report_on(run, splits, preprocessing, read)


def cache(run: RunConfig) -> KeptAhead:
    """Prepare images and take a frozen tower's features of them, as `train` with the same flags will read them."""
    from vlm_lora.training.feeding import ahead

    run, start = ahead.begin(with_adapters_settings(run, trains=True))
    with ahead.own_folder() as folder:
        session = open_session(replace(run, raw={**run.raw, **ahead.SETTINGS, "output_dir": str(folder)}))
        run, arguments = session.run, session.arguments
        splits = load_splits(run.data, need_train=arguments.do_train, need_validation=arguments.do_eval)
        before = ahead.sizes()
        prepared, preprocessing, groups, feeding = _read_and_order(session, splits, start, Observers([]))
        trainer = build_for_features(session, preprocessing, prepared, groups, feeding, start)
        return ahead.keep_ahead(run, arguments, preprocessing.encoder, prepared.splits, trainer, before=before)


def plan(run: RunConfig, request: PlanRequest, announce: Callable[[str], object] = logger.debug) -> PlanReport:
    """Predict what a training run needs on each device, from the model's configuration and a sample of the data."""
    from vlm_lora.memory.request import choose_devices, read_choice
    from vlm_lora.memory.run import plan_run

    request.check()
    devices = choose_devices(installed(), request.devices, named=run.backend)
    run, values, arguments_class = resolve_anywhere(with_adapters_settings(run, trains=True))
    check_arguments(values := with_file_numbers(values))
    preprocessing = open_preprocessing(run)
    prepared = None
    if run.data.dataset_name is not None:
        held_out = run.data.validation_name is None and run.data.validation_fraction > 0 and not run.data.streaming
        splits = load_splits(run.data, need_train=True, need_validation=held_out)
        epochs = epochs_by_keys(values, arguments_class, static_shapes=wants_static_shapes(run))
        prepared = known_rows(run, replace(splits, validation=None), preprocessing, epochs=epochs)
    choice = read_choice(run, values, arguments_class, config=preprocessing.config, world_size=request.world_size)
    return plan_run(_subject(run, values, preprocessing, prepared), request, choice, devices, announce)


def _subject(
    run: RunConfig, values: Mapping[str, Any], preprocessing: Preprocessing, prepared: Prepared | None
) -> Subject:
    from vlm_lora.memory.run import Subject

    return Subject(
        run=run,
        values=values,
        config=preprocessing.config,
        family=preprocessing.family,
        encoder=preprocessing.encoder,
        collator=preprocessing.collator,
        data=None if prepared is None else prepared.splits.train,
        new_tokens=preprocessing.new_tokens,
        image_size=preprocessing.image_size,
        shapes=tuple if prepared is None else lambda: shapes_of(prepared).get("train", ()),
    )


def _read_and_order(
    session: Session, splits: Splits, resumption: Resumption, observers: Observers
) -> tuple[Prepared, Preprocessing, Mapping[str, Any], Feeding]:
    """As `_read_rows`; return also in which order the training rows come."""
    arguments = session.arguments
    epochs = sampled_epochs(
        num_train_epochs=arguments.num_train_epochs,
        max_steps=arguments.max_steps,
        static_shapes=wants_static_shapes(session.run, session.backend),
    )
    packs = arguments.do_train and session.run.batching.packing
    order = strategy_of(session.run, None if packs else resumption.order)
    known = draws_known(splits, epochs)
    if arguments.do_train:
        check_known(order, known=known)
    prepared, preprocessing, groups, packing = _read_rows(
        session,
        splits,
        observers,
        epochs=epochs,
        needs_lengths=packs or (arguments.do_train and order is Strategy.GROUPED),
    )
    if packing is not None:
        check_first_step([packing.plan.count], arguments, unit="pack")
        return prepared, preprocessing, groups, Feeding(strategy=order or Strategy.RANDOM, packing=packing)
    train = prepared.splits.train
    if arguments.do_train and train is not None and splits.stream is None:
        check_first_step([len(rows) for rows in groups.get("train") or [train]], arguments, unit="row")
    feeding = choose_feeding(
        order, arguments, prepared.splits, prepared.tables, known=known, groups=groups.get("train")
    )
    return prepared, preprocessing, groups, feeding


def _read_rows(
    session: Session, splits: Splits, observers: Observers, *, epochs: int | None, needs_lengths: bool
) -> tuple[Prepared, Preprocessing, Mapping[str, Any], Packing | None]:
    """Read every row once before training.

    Returns:
        The rows without those that policies leave out; preprocessing that keeps to planned shapes, where shapes
        are to be static, or that collates packs; the rows of each shape; and the packs, where the run packs.
    """
    run, arguments = session.run, session.arguments
    preprocessing = open_for_run(session)
    static_shapes = wants_static_shapes(run, session.backend)
    if arguments.do_train:
        check_packing(
            run,
            arguments,
            preprocessing.family,
            preprocessing.config,
            preprocessing.encoder,
            static_shapes=static_shapes,
        )
    # Planned shapes repeat the first epoch's draws; the rows are read each epoch all the same.
    readings = sampled_epochs(
        num_train_epochs=arguments.num_train_epochs, max_steps=arguments.max_steps, static_shapes=False
    )
    refuse_early(run, preprocessing.family, trains=arguments.do_train, static_shapes=static_shapes)
    preprocessing = with_image_cache(run, splits, preprocessing, epochs=readings)
    say_boxes(splits.train or splits.validation, preprocessing)
    prepared = prepare_rows(
        run,
        arguments,
        splits,
        preprocessing,
        workers=session.values.get("dataloader_num_workers"),
        epochs=epochs,
        static_shapes=static_shapes,
        needs_lengths=needs_lengths,
    )
    preprocessing.encoder.say_damage()
    observers.data_read(prepared.checked)
    packing = plan_packs(session, preprocessing, prepared, static_shapes=static_shapes)
    if packing is not None and packing.shape is None:
        preprocessing = replace(preprocessing, collator=collator_of(preprocessing, packing))
    if not static_shapes:
        return prepared, preprocessing, {}, packing
    return prepared, *_plan_shapes(session, preprocessing, prepared, packing), packing


def _plan_shapes(
    session: Session, preprocessing: Preprocessing, prepared: Prepared, packing: Packing | None
) -> tuple[Preprocessing, Mapping[str, Any]]:
    """Plan the shapes of batches that are not packed; return preprocessing that keeps to them, and the rows of each."""
    from vlm_lora.training.planning import announce, shared_survey

    train = prepared.splits.train
    if train is not None and train.varies:
        logger.warning(
            "Batch shapes are planned from the rows of the first epoch, so every epoch repeats what it drew (OCR "
            "tasks, the rows of a weight's fraction). --static_shapes false draws anew each epoch."
        )
    if packing is not None and prepared.splits.validation is None:
        return replace(preprocessing, collator=collator_of(preprocessing, packing)), {}
    survey = shared_survey(
        Path(session.arguments.output_dir),
        session.arguments,
        lambda: survey_shapes(
            preprocessing.encoder,
            {split: rows for split, rows in shapes_of(prepared).items() if packing is None or split != "train"},
            canvases=prepared.canvases,
            max_shapes=session.run.batching.max_shapes,
            longest=preprocessing.longest,
        ),
    )
    packed = {} if packing is None else {"train": [range(packing.plan.count)]}
    announced = replace(survey, groups={**survey.groups, **packed})
    announce(announced, session.arguments, compiles=session.backend.traits.counts_graphs)
    encoder = preprocessing.encoder.with_canvases(survey.canvases)
    collator = collator_of(replace(preprocessing, encoder=encoder), packing, survey.plan)
    return replace(preprocessing, encoder=encoder, collator=collator), survey.groups


def _fit(
    session: Session, trainer: Any, resumption: Resumption, observers: Observers, stops: StopSignals
) -> dict[str, Any]:
    """Train, save the weights, the trainer's state and the figures, and return these."""
    from vlm_lora.evaluation.measuring import figures_at_start
    from vlm_lora.training.feeding.pace import padding_of
    from vlm_lora.training.finished import fit
    from vlm_lora.training.guards.watchdog import watching
    from vlm_lora.training.signals import end_behind_training, ending_on_signal

    checkpoint = resumption.checkpoint
    if checkpoint is not None:
        check_adapter_settings(checkpoint, trainer.model)
    watched = watching(trainer, session.run.guards.stall_timeout, observers.broken_off)
    with ending_on_signal(trainer, stops), agreeing_schedule(), watched:
        metrics = fit(trainer, checkpoint, observers)
    save_final(trainer)
    memory = {f"train_{name}": value for name, value in session.backend.memory().items()}
    waited = {"train_data_wait_seconds": round(trainer.waiting.seconds, 3), **padding_of(trainer.fed)}
    samples = {"train_samples": len(trainer.train_dataset)}
    figures = {**figures_at_start(trainer.state.log_history), **memory, **waited, **metrics, **samples}
    _recorded(Path(trainer.args.output_dir), "train", figures, trainer)
    end_behind_training(trainer, stops)
    return figures


def _recorded(folder: Path, split: str, figures: dict[str, Any], trainer: Any) -> dict[str, Any]:
    """Write the figures on rank 0 as soon as they are there, and return them."""
    if trainer.is_world_process_zero():
        write_results(folder, split, figures)
    return figures
