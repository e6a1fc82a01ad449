"""What a run leaves behind, and the folder it may write into."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_lora.errors import ConfigError
from vlm_lora.training.checkpoints import STATE_FILE, missing_parts
from vlm_lora.whole_files import write_json

logger = logging.getLogger(__name__)

RESULT_FILES = (STATE_FILE, "all_results.json", "adapter_config.json", "model.safetensors")
"""Any of these in a folder means that a run has been there."""


ADAPTER_SETTINGS = {
    "r": "--lora_rank",
    "lora_alpha": "--lora_alpha",
    "target_modules": "--lora_targets",
    "use_rslora": "--use_rslora",
    "use_dora": "--use_dora",
}
"""What a checkpoint's adapter_config.json must agree on, and the flag for it."""


def claim_output_dir(path: Path, *, overwrite: bool, checkpoint: str | None) -> None:
    """Make sure that the run may write into `path`, before anything expensive happens.

    Overwriting removes the other run's checkpoints and results, so that the two never mix; going on from a
    checkpoint in this folder keeps them.

    Raises:
        ConfigError: the path is a file, cannot be created, or holds another run's results.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--output_dir {path} is a file; name a folder.")
    readme = path / "README.md"
    if readme.exists() and not _is_model_card(readme):
        raise ConfigError(
            f"--output_dir {path} holds a README.md that is not a model card: it would be overwritten. "
            "Type another folder."
        )
    taken = [name for name in RESULT_FILES if (path / name).exists()]
    # One that was cut short is of no use to anybody: a job that was killed while it saved its first can start again.
    taken += [child.name for child in _checkpoints(path) if is_whole(child)]
    resumes_here = checkpoint is not None and Path(checkpoint).resolve().parent == path.resolve()
    if taken and overwrite and not resumes_here:
        _remove_earlier_run(path)
    elif taken and not resumes_here:
        raise ConfigError(
            f"--output_dir {path} already holds a run ({', '.join(taken[:4])}). Type another folder, "
            "--overwrite_output_dir to write over it, or --resume_from_checkpoint true to go on with it."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output_dir {path} cannot be created: {error.strerror}.") from error


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
        if saved.get(name) != getattr(asked, name)
    ]
    if different:
        raise ConfigError(
            f"--resume_from_checkpoint {checkpoint}: {'; '.join(different)}. Give the checkpoint's settings, "
            "or start afresh in another --output_dir."
        )


def _remove_earlier_run(path: Path) -> None:
    """Remove an earlier run's checkpoints and results, which another machine may be doing in the same folder."""
    for checkpoint in path.glob("checkpoint-*"):
        while checkpoint.is_dir():
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(checkpoint)
    for pattern in (
        "*_results.json",
        "predictions.jsonl",
        "trainer_state.json",
        "data_report.json",
        "quarantine.jsonl",
    ):
        for file in path.glob(pattern):
            file.unlink(missing_ok=True)
    logger.info("--overwrite_output_dir: checkpoints and results of the run in %s were removed.", path)


def find_checkpoint(folder: Path, resume: str | bool | None) -> str | None:
    """Turn `--resume_from_checkpoint` (true, or a folder) into the checkpoint's path; None starts afresh.

    One whose saving was cut short, or that holds weights alone, is passed over, with a warning, for one before it.

    Raises:
        ConfigError: there is no such checkpoint, or none that was saved to its end.
    """
    if resume is None or str(resume).lower() in ("false", ""):
        return None
    if str(resume).lower() != "true":
        if not Path(str(resume)).is_dir():
            raise ConfigError(f"--resume_from_checkpoint {resume}: no such folder.")
        if not is_whole(Path(str(resume))):
            raise ConfigError(
                f"--resume_from_checkpoint {resume}: {STATE_FILE}, which is written last, is missing or cut short: "
                "this is no checkpoint, or saving it was interrupted. Type another, or true for the newest whole one."
            )
        return str(resume)
    newest_first = _checkpoints(folder)[::-1]
    whole = [checkpoint for checkpoint in newest_first if is_whole(checkpoint)]
    if whole:
        # Without a complete one the newest stands, and who trains on from it is told what it lacks.
        chosen = next((checkpoint for checkpoint in whole if not missing_parts(checkpoint)), whole[0])
        for passed in newest_first[: newest_first.index(chosen)]:
            why = f"it lacks {', '.join(missing_parts(passed))}" if is_whole(passed) else "saving was interrupted"
            logger.warning("%s: %s; going on from %s instead.", passed, why, chosen)
        return str(chosen)
    if newest_first:
        raise ConfigError(
            f"--resume_from_checkpoint true: saving was interrupted in {', '.join(map(str, newest_first))}, and "
            f"{folder} holds no other checkpoint. Leave the flag out to start afresh."
        )
    raise ConfigError(f"--resume_from_checkpoint true: {folder} holds no checkpoint-N folder.")


def note_what_is_saved(arguments: Any) -> None:
    """Say at the start that a run with `--save_only_model` leaves checkpoints from which no run can go on."""
    if arguments.save_only_model and str(getattr(arguments.save_strategy, "value", arguments.save_strategy)) != "no":
        logger.warning(
            "--save_only_model true: checkpoints hold weights alone. --resume_from_checkpoint cannot go on from them, "
            "also where a cluster's script starts a run that was cut short again; only one that SIGUSR1 asks for is "
            "complete."
        )


def is_whole(checkpoint: Path) -> bool:
    """Say whether a checkpoint was saved to its end: the trainer writes its own state last."""
    try:
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(state, dict)


def _checkpoints(folder: Path) -> list[Path]:
    """Return a run's checkpoint folders, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name[11:]))


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
    own = settings.get("model_specific_special_tokens")
    if own and not settings.get("extra_special_tokens"):
        settings = {**settings, "extra_special_tokens": own}
    return settings


def write_results(folder: Path, split: str, metrics: Mapping[str, Any]) -> None:
    """Write `{split}_results.json` and merge the same figures into `all_results.json`."""
    write_json(folder / f"{split}_results.json", metrics)
    everything = folder / "all_results.json"
    earlier = json.loads(everything.read_text(encoding="utf-8")) if everything.exists() else {}
    write_json(everything, {**earlier, **metrics})
