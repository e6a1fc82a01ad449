"""Where an evaluation's results go: a folder per model and data, and never over those of another model or data.

What a folder holds is read from the configuration that every run writes there: `eval_config.yaml` for an evaluation,
`run_config.yaml` for a training run, whose own results are those of the model it trained.
"""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlm_lora.config.files import read_mapping
from vlm_lora.config.run_config import DataConfig, RunConfig
from vlm_lora.errors import ConfigError

logger = logging.getLogger(__name__)

RECORD, TRAINED = "eval_config.yaml", "run_config.yaml"
RESULTS = ("eval_results.json", "predictions.jsonl")
ROOT = Path("eval_results")
_DATA_SUFFIX = re.compile(r"\.(jsonl?|parquet|arrow|csv|tsv|tar|gz|ya?ml)$", re.IGNORECASE)
_LONGEST = 60


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What was evaluated, and on what: paths as they lie on the disk, Hub ids as they are."""

    model: str
    data: str

    def __str__(self) -> str:
        return f"{self.model} on {self.data or 'no data'}"


def with_own_folder(run: RunConfig) -> RunConfig:
    """Return the run with the folder of its model and data as `output_dir` where it has none, and say where that is.

    A name that another model or other data has already is told apart by a few digits. Every process of a run, and
    every run of the same model and data, finds the same folder.
    """
    if run.raw.get("output_dir"):
        return run
    wanted = _of(run)
    folder = ROOT / f"{_short(run.model.model_name_or_path, parents=True)}-{_short(_data_name(run))}"
    held = _held(folder)
    if held not in (None, wanted):
        taken, digits = folder, hashlib.sha256(str(wanted).encode()).hexdigest()[:6]
        folder = folder.with_name(f"{folder.name}-{digits}")
        logger.info("%s holds the results of %s.", taken, held)
        held = _held(folder)
    over = "" if held is None else ", over those of an earlier evaluation of the same model and data"
    logger.info("The results go to %s%s.", folder, over)
    return replace(run, raw={**run.raw, "output_dir": str(folder)})


def refuse_other_results(folder: Path, run: RunConfig) -> None:
    """Refuse to evaluate into a folder that holds the results of another model or of other data.

    Raises:
        ConfigError: names both, and what to type.
    """
    held = _held(folder)
    if held in (None, _of(run)) or run.overwrite_output_dir:
        return
    raise ConfigError(
        f"--output_dir {folder} holds the evaluation results of {held}; those of {_of(run)} would replace them. Type "
        "another folder, or --overwrite_output_dir to write over them."
    )


def _held(folder: Path) -> Subject | None:
    """Return whose results a folder holds; None where it holds none, or where nothing says whose they are."""
    if not any((folder / name).is_file() for name in RESULTS):
        return None
    for name in (RECORD, TRAINED):
        if (folder / name).is_file():
            settings = read_mapping(folder / name)
            trained = {"model_name_or_path": str(folder), "model_revision": None} if name == TRAINED else {}
            return _subject({**settings, **trained})
    return Subject(model="an unknown model", data="unknown data")


def _of(run: RunConfig) -> Subject:
    return _subject({**vars(run.model), **vars(run.data)})


def _subject(settings: dict[str, Any]) -> Subject:
    revision = settings.get("model_revision")
    model = [_placed(settings.get("model_name_or_path")), None if revision == "main" else revision]
    names = ("dataset_name", "validation_name")
    data = [*(_placed(settings.get(name)) for name in names), settings.get("dataset_config_name"), _split(settings)]
    return Subject(model=_joined(model), data=_joined(data))


def _split(settings: dict[str, Any]) -> str:
    """Say which rows of the data are held out, where it is another split than without a flag."""
    default = DataConfig()
    divided = {
        name: settings.get(name, getattr(default, name))
        for name in ("validation_fraction", "split_seed")
        if not settings.get("validation_name")
    }
    other = [f"--{name} {value}" for name, value in divided.items() if value != getattr(default, name)]
    return f"({' '.join(other)})" if other else ""


def _joined(words: list[Any]) -> str:
    return " ".join(str(word) for word in words if word)


def _placed(name: Any) -> str:
    """Return an existing path from the root on, so that the same folder is known by all its names."""
    text = str(name or "")
    path = Path(text).expanduser()
    return str(path.resolve()) if text and path.exists() else text


def _data_name(run: RunConfig) -> str | None:
    return run.data.validation_name or run.data.dataset_name


def _short(name: str | None, *, parents: bool = False) -> str:
    """Return the last part of a path or Hub id in letters, digits, dots and dashes; of a checkpoint its run's too."""
    parts = [part for part in _placed(name).split("/") if part] or ["none"]
    kept = parts[-2:] if parents and parts[-1].startswith("checkpoint-") else parts[-1:]
    text = re.sub(r"[^\w.-]+", "_", _DATA_SUFFIX.sub("", "-".join(kept))).strip("._-")
    return text[:_LONGEST] or "unnamed"
