"""What a run leaves behind, and the folder it may write into."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_lora.batching.canvases import BY_PIXELS
from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.whole_files import read_json, write_json
from vlm_lora.errors import ConfigError
from vlm_lora.model.adapters.targets import selected_modules
from vlm_lora.model.manifest import RECORDS, uncover
from vlm_lora.training.checkpoints.choosing import asks_for_newest, is_whole
from vlm_lora.training.checkpoints.contents import STATE_FILE
from vlm_lora.training.checkpoints.run_record import (
    EVALUATION_FILES,
    RECORD,
    WEIGHT_FILES,
    files_named,
    note_start,
    numbered_checkpoints,
    read_record,
    remove_recorded,
    training_files,
)
from vlm_lora.training.checkpoints.sealing import begin_final, seal_final
from vlm_lora.training.checkpoints.shared_folder import check_machines
from vlm_lora.training.meeting import agreeing

logger = logging.getLogger(__name__)

RESULT_FILES = (STATE_FILE, "all_results.json", "train_results.json", "eval_results.json")

TRAINED = "train_results.json"
"""Written once a training has ended and its weights are there."""

TAKEN_FILES = (
    *RESULT_FILES,
    "predictions.jsonl",
    *WEIGHT_FILES,
    "adapter_model*.bin",
    "adapter_model*.safetensors",
    "model*.safetensors",
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
)
"""Any of these in a folder means that it is somebody's: a run's, or weights that were copied there."""


ADAPTER_SETTINGS = {
    "r": "--lora_rank",
    "lora_alpha": "--lora_alpha",
    "target_parameters": "--lora_targets",
    "use_rslora": "--use_rslora",
    "use_dora": "--use_dora",
    "modules_to_save": "--train_fully",
    "trainable_token_indices": "--new_tokens",
}
"""What a checkpoint's adapter_config.json must agree on, besides the modules that it selects, and the flag for it."""


def claim_folder(
    run: RunConfig, arguments: Any, checkpoint: str | None, *, begins_again: bool = False, writes: bool = True
) -> None:
    """Make sure that a run of `train` may write into its output folder, and put on record what it will write there.

    Args:
        run: resolved.
        arguments: the training arguments.
        checkpoint: what the run goes on from.
        begins_again: whether this very run has trained weights there that it makes once more.
        writes: False only looks, and leaves the folder as it is.

    Raises:
        ConfigError: the folder is the model's own, or as `claim_output_dir`, `prepare_for_results` and
            `check_machines` say; on every rank alike.
    """
    folder = Path(arguments.output_dir)

    def claim() -> None:
        if arguments.do_train and folder.resolve() == Path(str(run.model.model_name_or_path)).resolve():
            raise ConfigError(f"--output_dir {folder} is the model's own folder; name another one.")
        with arguments.main_process_first():
            first = writes and arguments.local_process_index == 0
            if arguments.do_train:
                claim_output_dir(
                    folder,
                    overwrite=run.overwrite_output_dir,
                    checkpoint=checkpoint,
                    again=asks_for_newest(run.raw.get("resume_from_checkpoint")),
                    trained=not begins_again,
                    writes=first,
                )
            else:
                prepare_for_results(folder, writes=first)

    agreeing(arguments, claim)
    if writes and arguments.do_train:
        check_machines(folder, arguments)


def claim_output_dir(
    path: Path,
    *,
    overwrite: bool,
    checkpoint: str | None,
    again: bool = False,
    trained: bool = True,
    writes: bool = True,
) -> None:
    """Make sure that the run may write into `path`, before anything expensive happens, and put it on record there.

    Overwriting removes the other runs' checkpoints and results, so that the two never mix, but only what is on record
    as theirs; going on from a checkpoint in this folder keeps them.

    Args:
        path: the output folder.
        overwrite: `--overwrite_output_dir`.
        checkpoint: what the run goes on from.
        again: whether the newest checkpoint was asked for: then a training that was cut short before it had saved one
            may begin once more in its folder.
        trained: whether trained weights that lie there are to be kept; False where this very run makes them again.
        writes: whether this process is the one of its machine that removes and writes; the others look only.

    Raises:
        ConfigError: the path is a file, cannot be created, or holds another run's results or somebody's weights.
    """
    _refuse_names_of_folders(path, training_files())
    resumed = None
    if checkpoint is not None and Path(checkpoint).resolve().parent == path.resolve():
        resumed = Path(checkpoint).resolve().name
    else:
        _refuse_what_is_taken(path, overwrite=overwrite, again=again, trained=trained)
        if overwrite and writes:
            _remove_earlier_run(path)
    if writes:
        _start(path, training_files(), trains=True, resumed=resumed)


def prepare_for_results(path: Path, *, writes: bool = True) -> None:
    """Make the folder of a run that measures alone, and put on record there what it will write.

    Args:
        path: the output folder.
        writes: as for `claim_output_dir`.

    Raises:
        ConfigError: the path is a file or cannot be created.
    """
    _refuse_names_of_folders(path, EVALUATION_FILES)
    if writes:
        _start(path, EVALUATION_FILES, trains=False, resumed=None)


def _start(path: Path, names: Sequence[str], *, trains: bool, resumed: str | None) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        _set_broken_results_aside(path)
        note_start(path, names, trains=trains, resumed=resumed)
        if trains:
            uncover(path, RECORDS)  # an earlier training's weights stay until this one's are there
    except OSError as error:
        raise ConfigError(f"--output_dir {path} cannot be created or written: {error.strerror}.") from error


def _refuse_names_of_folders(path: Path, names: Sequence[str]) -> None:
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--output_dir {path} is a file; name a folder.")
    folders = [found.name for found in files_named(path, (*names, RECORD)) if found.is_dir()]
    if folders:
        raise ConfigError(
            f"--output_dir {path} holds a folder called {folders[0]}, where this run would write a file of that name. "
            "Move it elsewhere, or type another folder."
        )
    readme = path / "README.md"
    # A run that was killed while it wrote its card leaves an empty file.
    if "README.md" in names and readme.exists() and readme.stat().st_size and not _is_model_card(readme):
        raise ConfigError(
            f"--output_dir {path} holds a README.md that is not a model card: it would be overwritten. "
            "Type another folder."
        )


def _refuse_what_is_taken(path: Path, *, overwrite: bool, again: bool, trained: bool) -> None:
    """Refuse a folder that holds a run, unless it is to be overwritten; and files that no run on record wrote."""
    record = read_record(path)
    known = {file.name for file in files_named(path, record.files)}
    taken = [file.name for file in files_named(path, TAKEN_FILES)]
    card = path / "README.md"
    foreign = [name for name in [*taken, *(["README.md"] if _has_text(card) else [])] if name not in known]
    # One that was cut short is of no use to anybody: a job that was killed while it saved its first can start again.
    whole = [checkpoint.name for _, checkpoint in numbered_checkpoints(path) if is_whole(checkpoint)]
    go_on = " To go on with the run there, type --resume_from_checkpoint true." if whole else ""
    cut_short = again and not whole and not (trained and (path / TRAINED).is_file())
    if foreign:
        raise ConfigError(
            f"--output_dir {path} holds {', '.join(foreign[:4])}, which no run on record there ({RECORD}) wrote. It "
            "would be overwritten, also with --overwrite_output_dir, which removes only what is on record. Move it "
            f"elsewhere, or type another folder.{go_on}"
        )
    if (taken or whole) and not (overwrite or cut_short):
        raise ConfigError(
            f"--output_dir {path} already holds a run ({', '.join([*taken, *whole][:4])}). Type another folder, or "
            f"--overwrite_output_dir to write over what is on record there ({RECORD}).{go_on}"
        )


def _has_text(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0


def _set_broken_results_aside(path: Path) -> None:
    """Look through the results that a killed run may have left half written: a run goes on without their figures."""
    for name in RESULT_FILES:
        read_json(path / name)


def _is_model_card(readme: Path) -> bool:
    text = readme.read_text(encoding="utf-8", errors="replace")
    return any(mark in text for mark in ("tags: [vlm-lora", "library_name: peft"))


def check_adapter_settings(checkpoint: str, model: Any) -> None:
    """Refuse to go on from a checkpoint whose LoRA differs from the one that was asked for.

    Raises:
        ConfigError: names each setting with both values.
    """
    saved_file = Path(checkpoint) / "adapter_config.json"
    if not saved_file.exists() or not hasattr(model, "peft_config"):
        return
    saved = json.loads(saved_file.read_text(encoding="utf-8"))
    asked = model.peft_config["default"]
    different = [
        f"{flag} {saved.get(name)} in the checkpoint, {getattr(asked, name)} now"
        for name, flag in ADAPTER_SETTINGS.items()
        if _in_no_order(saved.get(name)) != _in_no_order(getattr(asked, name))
    ]
    different += _other_modules(model, saved.get("target_modules") or [], asked.target_modules or [])
    if different:
        raise ConfigError(
            f"--resume_from_checkpoint {checkpoint}: {'; '.join(different)}. Give the checkpoint's settings, "
            "or start afresh in another --output_dir."
        )


def _other_modules(model: Any, saved: str | Sequence[str], asked: str | Sequence[str]) -> list[str]:
    """Return what differs in the modules that two settings select, however each is written; empty if nothing does."""
    before, now = selected_modules(model, saved), selected_modules(model, asked)
    if before == now:
        return []
    beyond = [
        f"{min(more)} {where} alone"
        for more, where in ((before - now, "in the checkpoint"), (now - before, "now"))
        if more
    ]
    return [f"--lora_targets {len(before)} modules in the checkpoint, {len(now)} now ({', '.join(beyond)})"]


def _in_no_order(value: Any) -> Any:
    """Return a setting to be compared: PEFT keeps names in a list, or in a set."""
    return frozenset(value) if isinstance(value, (list, tuple, set)) else value


def _remove_earlier_run(path: Path) -> None:
    record = read_record(path)
    try:
        remove_recorded(path, record)
    except OSError as error:
        raise ConfigError(
            f"--overwrite_output_dir: {error.filename} cannot be removed: {error.strerror}. Remove it yourself, or "
            "type another --output_dir."
        ) from error
    if record.checkpoints or record.files:
        logger.info("--overwrite_output_dir: what runs on record had written in %s was removed.", path)


def note_what_is_saved(arguments: Any) -> None:
    """Say at the start that a run with `--save_only_model` leaves checkpoints from which no run can go on."""
    if arguments.save_only_model and str(getattr(arguments.save_strategy, "value", arguments.save_strategy)) != "no":
        logger.warning(
            "--save_only_model true: checkpoints hold weights alone. --resume_from_checkpoint cannot go on from them, "
            "also where a cluster's script starts a run that was cut short again; only one that a signal asks for "
            "is complete."
        )


def save_final(trainer: Any) -> None:
    """Save a trained model, its processor and the trainer's state into the output folder; all ranks call it.

    The manifest comes last: a killed run leaves one that says that the folder is unfinished.
    """
    folder, saves = Path(trainer.args.output_dir), trainer.args.should_save
    if saves:
        begin_final(folder)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(folder))
    trainer.save_state()
    if trainer.is_world_process_zero():
        save_processor(trainer.processing_class, folder)
    if saves:
        seal_final(folder)


PARTS = {
    "preprocessor_config.json": ("feature_extractor", "image_processor"),
    "video_preprocessor_config.json": ("video_processor",),
}
"""The files that 4.55 reads a processor's parts from; 5.x nests them all in processor_config.json."""


def save_processor(processor: Any, folder: Path) -> None:
    """Save processor, tokenizer and chat template in the layout that transformers 4.55 and 5.x both read."""
    processor.save_pretrained(folder)
    nested = folder / "processor_config.json"
    settings = json.loads(nested.read_text(encoding="utf-8")) if nested.exists() else {}
    for file, names in PARTS.items():
        content: dict[str, Any] = {}
        for name in names:
            settings.pop(name, None)
            part = getattr(processor, name, None)
            if part is not None:
                # 4.55 has one name for both implementations of 5.x.
                kind = type(part).__name__.removesuffix("Pil")
                content |= {**json.loads(part.to_json_string()), f"{name}_type": kind}
                size = content.get("size") or {}
                if kind.startswith(BY_PIXELS) and {"shortest_edge", "longest_edge"} <= set(size):
                    # 4.55 reads its size from these alone.
                    content |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
        if content:
            write_json(folder / file, content)
    if nested.exists():
        write_json(nested, settings)
    tokens = folder / "tokenizer_config.json"
    if tokens.exists():
        write_json(tokens, _for_both_versions(json.loads(tokens.read_text(encoding="utf-8"))))


def _for_both_versions(settings: dict[str, Any]) -> dict[str, Any]:
    """Name a tokenizer's class and its own special tokens as 4.55 reads them; 5.x reads the older names too."""
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings = {**settings, "tokenizer_class": "PreTrainedTokenizerFast"}
    if isinstance(more := settings.get("extra_special_tokens"), list):  # which is a table in 4.55
        settings = {name: value for name, value in settings.items() if name != "extra_special_tokens"}
        settings |= {"additional_special_tokens": more} if more else {}
    own = settings.get("model_specific_special_tokens")
    if own and not settings.get("extra_special_tokens") and not settings.get("additional_special_tokens"):
        settings = {**settings, "extra_special_tokens": own}
    return settings


def write_results(folder: Path, split: str, metrics: Mapping[str, Any]) -> None:
    """Write `{split}_results.json` and merge the same figures into `all_results.json`."""
    write_json(folder / f"{split}_results.json", metrics)
    everything = folder / "all_results.json"
    write_json(everything, {**read_json(everything), **metrics})
