"""What can be known of a run's settings before torch is imported: names, types, what is missing, paths, packages.

Everything here is checked again where it is used; here it costs a fraction of a second instead of ten.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vlm_lora.config.aliases import RESTATED, canonical_name
from vlm_lora.config.argument_fields import arguments_like
from vlm_lora.config.declaration import declarations
from vlm_lora.config.resolution import resolve
from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.scoring import unknown_metric
from vlm_lora.config.sections.registered_names import (
    check_finder,
    check_new_name,
    is_registered,
    refuse_missing_package,
)
from vlm_lora.config.together import check_together
from vlm_lora.errors import ConfigError, DataError, ModelError, Refusals

MODEL, DATA, OUTPUT = "model_name_or_path", "dataset_name", "output_dir"

MEANINGS: Mapping[str, tuple[str, str]] = {
    MODEL: ("a Hub id such as google/gemma-3-4b-it, or a folder", "google/gemma-3-4b-it"),
    DATA: ("your data: a file, a folder, a glob, or a Hub id", "data/train.jsonl"),
    OUTPUT: ("the folder that adapter, checkpoints and results go to", "runs/first"),
}
"""What each needed flag is, and a value for an example."""

DATA_SUFFIXES = (
    *(".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".feather"),
    *(".tar", ".tar.gz", ".tgz"),
)
"""Of files that data is read from; a name that ends so is no Hub id. A test holds them equal to the readers'."""

TRACKERS: Mapping[str, tuple[str, ...]] = {
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub",),
    "dvclive": ("dvclive",),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""Modules of which one must be there for a value of --report_to."""


def check_early(
    run: RunConfig,
    verb: str,
    needed: Sequence[str] = (),
    *,
    keys: bool = True,
    trains: bool = True,
    refused: Refusals | None = None,
    judge: Callable[[Mapping[str, Any]], None] | None = None,
) -> None:
    """Refuse what can be refused by now, all of it at once.

    Args:
        run: as parsed.
        verb: for the example in messages.
        needed: flags without which the verb does nothing.
        keys: whether the trainer's keys mean something to the verb.
        trains: whether it trains, or speaks of a training; else what is for training alone is not looked at, such as
            the keys of DeepSpeed and FSDP.
        refused: what was refused when the settings were read.
        judge: refuses values of the trainer's keys.

    Raises:
        ConfigError, DataError, ModelError: as the places where the setting is used would, only sooner.
    """
    gathered = refused or Refusals()
    with gathered.noting():
        _check_repeated(run, verb)
    if keys:
        resolved = check_keys(run if trains else _without_engines(run), gathered)
        if judge is not None:
            with gathered.noting():
                judge(resolved.raw)
        if trains:
            check_together(resolved, steps=verb == "train" and not run.dry_run_options.dry_run, refused=gathered)
    for asked in run.scoring.asked:
        if (fault := unknown_metric(asked)) is not None:
            gathered.note(ConfigError(fault))
    with gathered.noting():
        _check_model(run.model.model_name_or_path, verb)
    with gathered.noting():
        _check_registration(run, verb)
    for flag, name in ((DATA, run.data.dataset_name), ("validation_name", run.data.validation_name)):
        with gathered.noting():
            _check_data(flag, name)
    with gathered.noting():
        _check_trackers(run.raw.get("report_to"))
    with gathered.noting():
        _check_needed(run, verb, needed, known=gathered.names)
    gathered.raise_any()


def _check_repeated(run: RunConfig, verb: str) -> None:
    if run.from_run is not None and verb in ("eval", "ask", "merge", "quantize"):
        raise ConfigError(
            f"--from_run is for training. For what a run has trained: vlm-lora {verb} --model_name_or_path "
            f"{Path(run.from_run).parent}"
        )


def check_keys(run: RunConfig, refused: Refusals | None = None) -> RunConfig:
    """Check keys and values against the arguments classes that are installed, read from their source files.

    The chosen backend's own class judges them again. Keys of a vendor's class that is not installed are left to it.

    Args:
        run: as parsed.
        refused: gathers what cannot be used; None raises it.

    Returns:
        The run with its keys typed and under canonical names, as far as they can be checked here.
    """
    known = arguments_like(run.backend)
    own = declarations().get(run.backend)
    raw = run.raw
    if known is None:
        known = arguments_like("auto")
        raw = {key: value for key, value in raw.items() if own is None or key not in own.flags}
    return run if known is None else resolve(replace(run, raw=raw), known, refused)[0]


def _without_engines(run: RunConfig) -> RunConfig:
    names = {
        "deepspeed",
        "fsdp",
        "fsdp_config",
        *(key for key, row in RESTATED.items() if row.setting == "fsdp_config"),
    }
    return replace(run, raw={key: value for key, value in run.raw.items() if canonical_name(key) not in names})


def _check_needed(run: RunConfig, verb: str, needed: Sequence[str], *, known: Collection[str]) -> None:
    """Refuse a run without what its verb needs; what was given and refused is known, so it is not missing."""
    data = run.data.dataset_name or (run.data.validation_name if verb == "eval" else None)
    given = {MODEL: run.model.model_name_or_path, DATA: data, OUTPUT: run.raw.get(OUTPUT)}
    missing = [name for name in needed if not given[name] and name not in known]
    if not missing:
        return
    flags = {DATA: DATA if run.data.dataset_name or not data else "validation_name"}
    words = " ".join(f"--{flags.get(name, name)} {given[name] or MEANINGS[name][1]}" for name in needed)
    example = f"For example: vlm-lora {verb} {words}"
    if len(missing) == 1:
        raise ConfigError(f"--{missing[0]} is missing: {MEANINGS[missing[0]][0]}. {example}")
    lines = [f"  --{name}: {MEANINGS[name][0]}" for name in missing]
    raise ConfigError("\n".join(["These flags are missing:", *lines, example]))


def _check_registration(run: RunConfig, verb: str) -> None:
    if run.output_model_name is not None and verb == "train":
        check_new_name("--output_model_name", run.output_model_name)
        refuse_missing_package(f"--output_model_name {run.output_model_name}")


def _check_model(name: str | None, verb: str) -> None:
    if name is None or Path(name).expanduser().exists():
        return
    if is_registered(name):
        check_finder(name, verb)
        return
    if is_path_of_model(name):
        raise ModelError(f"{name}: no such folder. Give an existing folder, or a Hub id such as {MEANINGS[MODEL][1]}.")


def is_path_of_model(name: str) -> bool:
    """Say whether a model's name can only be that of a folder: a Hub id has one slash at most."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name


def _check_data(flag: str, name: str | None) -> None:
    if name is None or any(mark in name for mark in "*?[{,;:+"):
        return  # several names, or a pattern: whoever opens them knows how to read it
    path = Path(name).expanduser()
    if not path.exists() and (name.startswith((".", "/", "~")) or name.lower().endswith(DATA_SUFFIXES)):
        raise DataError(f"--{flag} {name}: no such file or folder (looked at {path.absolute()}).")


def _check_trackers(asked: Any) -> None:
    words = asked.replace(",", " ").split() if isinstance(asked, str) else asked
    for word in words if isinstance(words, list | tuple) else ():
        modules = TRACKERS.get(str(word).strip().lower(), ())
        if modules and not any(find_spec(module) for module in modules):
            raise ConfigError(
                f"--report_to {word}: the package is not installed. Type: pip install {modules[0]}, or leave "
                "--report_to out."
            )
