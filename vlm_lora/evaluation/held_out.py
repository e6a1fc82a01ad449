"""Which rows a trained model is measured on: what its training held out, and whether it was trained on any of them.

A training's record (`run_config.yaml` next to its weights, `run.json` also in a checkpoint) says which data it read
and how it divided them. An evaluation on the same data reads and divides them in the same way, but for what its own
command says.
"""

from __future__ import annotations

import logging
from array import array
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from vlm_lora.batching.row_table import RowTable
from vlm_lora.config.early import DATA_SUFFIXES
from vlm_lora.config.fields import own_fields
from vlm_lora.config.run_config import DataConfig, RunConfig
from vlm_lora.config.values import spell
from vlm_lora.config.whole_files import read_json
from vlm_lora.data.dataset import ConversationDataset, Conversations, Splits, each_data_set
from vlm_lora.data.mixture import split_names
from vlm_lora.data.sources.named import open_source
from vlm_lora.data.split_parts import split_parts
from vlm_lora.data.splits import Part, hold_out, limit, pick_split, pick_train, whole
from vlm_lora.data.wording import counted, joined
from vlm_lora.errors import ConfigError, DataError
from vlm_lora.model.processor.trained_boxes import trained_settings

logger = logging.getLogger(__name__)

DIVIDING = ("validation_name", "validation_fraction", "split_seed")
"""Settings that say which rows are held out."""

OF_EACH_COMMAND = frozenset(
    {
        *("dataset_name", "dataset_weights", "box_coordinates", "streaming", "shuffle_buffer"),
        *("max_train_samples", "max_eval_samples", "skip_check", "on_bad_sample", "max_bad_fraction"),
        # Who made a model's folder does not say what may be fetched or how much may be read here.
        *("allow_urls", "max_image_pixels", "max_image_bytes"),
    }
)
"""Data settings that are not taken over: what this command alone decides, and what an evaluation does not read."""

_PLACES = ("validation_name", "image_root", "task_file")
RECORD, REPORT = "run.json", "data_report.json"
"""What a training wrote next to its weights about itself, and about its data (a folder above a checkpoint's)."""

SHOWN = 3
"""Rows that a warning names."""


def with_trained_split(run: RunConfig, *, announce: bool = True) -> RunConfig:
    """Return an evaluation with the data settings of the training that made its model, if that read the same data.

    Settings that were given stay. One of those that divide the rows replaces all three.

    Args:
        run: the evaluation.
        announce: say which rows are evaluated.

    Raises:
        ConfigError: the training was measured on data of a name that is not here.
    """
    settings = trained_settings(run.model)
    if settings is None or not _names_in_common(run.data.dataset_name, settings):
        return run
    divided = run.given & set(DIVIDING)
    names = [field.name for field in fields(DataConfig) if field.name not in OF_EACH_COMMAND]
    taken = {}
    for name in names:
        if name in run.given or (divided and name in DIVIDING):
            continue
        value = own_fields()[name].typed(settings[name]) if name in settings else own_fields()[name].default
        if value != getattr(run.data, name) and not (name in _PLACES and _is_elsewhere(run, name, value)):
            taken[name] = value
    split = "as this command says" if divided else _in_words(replace(run.data, **taken))
    others = {name: value for name, value in taken.items() if name not in DIVIDING}
    # What this command did not say is said by it, so that nobody takes the figures for those of other rows.
    logger.log(
        logging.WARNING if taken and announce else logging.INFO if announce else logging.DEBUG,
        "%s was trained on this data. Which rows are evaluated: %s.%s",
        run.model.model_name_or_path,
        split,
        f" Also as its training had it: {', '.join(f'--{name} {spell(value)}' for name, value in others.items())}"
        if others
        else "",
    )
    return replace(run, data=replace(run.data, **taken))


def warn_of_trained_rows(run: RunConfig, splits: Splits, tables: Mapping[str, RowTable]) -> None:
    """Say how many of the rows to evaluate the model was trained on: by file and row, and by what rows say.

    Args:
        run: the evaluation.
        splits: its rows.
        tables: what is known of them, by the names of `split_parts`; empty where they were not read.
    """
    settings = trained_settings(run.model)
    if settings is None or splits.validation is None:
        return
    parts = {name: part for name, part in split_parts(splits).items() if name.split(" ")[0] == "validation"}
    marks = _trained_marks(run) if tables else None
    found = {
        (name, index)
        for name, part in parts.items()
        if marks is not None and name in tables and len(tables[name]) == len(part)
        for index in np.flatnonzero(np.isin(tables[name].rows["content"][:, 0].astype("<u4"), marks)).tolist()
    }
    if not _is_its_own_split(run, settings):
        found |= _by_place(run, settings, parts)
    elif marks is None:
        _warn_of_changed_data(run, settings, splits.validation)
    if not found:
        return
    named = ", ".join(str(parts[name].source(index)) for name, index in sorted(found)[:SHOWN])
    divided = [f"--{name}" for name in DIVIDING if name in run.given]
    held_out = f"leave {joined(divided)} out to evaluate what that training held out, or " if divided else ""
    logger.warning(
        "%s was trained on %d of the %s evaluated (%s%s): their figures say little about rows that it "
        "has not seen. To change that, %sname other data by --validation_name.",
        run.model.model_name_or_path,
        len(found),
        counted(len(splits.validation), "row that is", "rows that are"),
        named,
        " ..." if len(found) > SHOWN else "",
        held_out,
    )


def _by_place(
    run: RunConfig, settings: Mapping[str, Any], parts: Mapping[str, ConversationDataset]
) -> set[tuple[str, int]]:
    """Return the rows that a training used, by data set and number there: the same row of the same file."""
    try:
        trained = _trained_parts(run, settings)
    except DataError as error:
        logger.info("Whether rows were trained on cannot be told by their files: %s", error)
        return set()
    return {(name, index) for name, part in parts.items() for index in _trained_rows(part, trained)}


def _trained_marks(run: RunConfig) -> Any:
    """Return a 32-bit mark, `(R,)`, of what each row says that the training used; None where its record has none.

    The record has one for each row of a small data set, and for stretches of rows of a larger one.
    """
    folder = Path(str(run.model.model_name_or_path)).expanduser()
    data = read_json(folder / RECORD).get("data") or {}
    trained = [each for name, each in data.items() if name.split(" ")[0] == "train"]
    if not trained or not all(each.get("marks") and each.get("rows") for each in trained):
        return None
    marks = [np.frombuffer(b64decode(each["marks"]), "<u4") for each in trained]
    whole_sets = all(len(found) == each["rows"] for found, each in zip(marks, trained, strict=True))
    return np.concatenate(marks) if whole_sets else None


def _is_its_own_split(run: RunConfig, settings: Mapping[str, Any]) -> bool:
    """Say whether the rows are those that the training held out, as far as settings say it."""
    known = _names_in_common(run.data.dataset_name, settings).values()
    everything = settings.get("streaming", False) and settings.get("validation_name") is None
    return not everything and not run.given & set(DIVIDING) and set(split_names(run.data.dataset_name)) <= set(known)


def _warn_of_changed_data(run: RunConfig, settings: Mapping[str, Any], validation: Conversations) -> None:
    """Say where data that were divided have another number of rows now: other ones are held out then."""
    if any(settings.get(name) is not None for name in ("validation_name", "max_train_samples", "max_eval_samples")):
        return
    folder = Path(str(run.model.model_name_or_path)).expanduser()
    reports = [place / REPORT for place in (folder, folder.parent) if (place / REPORT).is_file()]
    members = [member for member in each_data_set(validation) if isinstance(member.positions, array)]
    splits = read_json(reports[0]).get("splits", {}) if reports else {}
    counted = sum(split["rows"] for split in splits.values())
    now = sum(len(member.rows) for member in members)
    if members and len(splits) == 2 * len(split_names(settings["dataset_name"])) and counted != now:
        logger.warning(
            "%s has %d rows, and had %d when %s was trained on it (%s), so other rows are held out now: many of them "
            "were trained on. Name rows that were not by --validation_name.",
            run.data.dataset_name,
            now,
            counted,
            run.model.model_name_or_path,
            reports[0],
        )


def _in_words(data: DataConfig) -> str:
    if data.validation_name is not None:
        return f"those that its training was measured on, --validation_name {data.validation_name}"
    return (
        "those that its training held out, a validation split of the data or else "
        f"--validation_fraction {data.validation_fraction:g} --split_seed {data.split_seed}"
    )


def _is_elsewhere(run: RunConfig, name: str, value: Any) -> bool:
    """Say whether a place in the record is not here; then it is left out, or refused where the rows depend on it."""
    if value is None or any(mark in value for mark in "*?[{,;:+") or Path(value).expanduser().exists():
        return False
    is_path = value.startswith((".", "/", "~")) or value.lower().endswith(DATA_SUFFIXES)
    if name == "validation_name":
        if is_path:
            raise ConfigError(
                f"{run.model.model_name_or_path} was measured on --validation_name {value} in its training, which is "
                "not there. Type --validation_name with where it lies now, or with other data."
            )
        return False
    return True


def _names_in_common(asked: str | None, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the trained data sets that this command names too: the training's name for each, and the one here."""
    recorded = settings.get("dataset_name")
    if not isinstance(recorded, str):
        return {}
    return {old: new for old in split_names(recorded) for new in split_names(asked) if _is_same(old, new)}


def _is_same(recorded: str, asked: str) -> bool:
    """Compare two names of data; a relative path of the record may have been relative to another folder."""
    if recorded == asked:
        return True
    old, new = Path(recorded).expanduser(), Path(asked).expanduser()
    if not new.exists():
        return False
    if old.exists():
        return old.resolve() == new.resolve()
    parts = [part for part in old.parts if part not in ("..", ".")]
    return not old.is_absolute() and list(new.resolve().parts[-len(parts) :]) == parts


def _trained_parts(run: RunConfig, settings: Mapping[str, Any]) -> list[Part]:
    """Return the rows that a training used, of each of its data sets that may have files in common with this run's.

    Raises:
        DataError: they are not here any more.
    """
    known = _names_in_common(run.data.dataset_name, settings)
    asked = [*split_names(run.data.dataset_name), *([run.data.validation_name] if run.data.validation_name else [])]
    parts = []
    for name in split_names(settings.get("dataset_name")):
        here = known.get(name, name)
        if here not in known.values() and not any(_may_share(here, other) for other in asked):
            continue
        source = open_source(here, config_name=settings.get("dataset_config_name"))
        picked = pick_train(source.splits, where=source.name)
        if picked is not None:
            named = pick_split(source.splits, "validation", where=source.name) is not None
            parts.append(_trained_part(*picked, settings, holds_out=not named))
    return parts


def _trained_part(name: str, rows: Any, settings: Mapping[str, Any], *, holds_out: bool) -> Part:
    default = DataConfig()
    fraction = settings.get("validation_fraction", default.validation_fraction)
    separate = settings.get("validation_name") is not None or settings.get("streaming", False)
    if not holds_out or separate or not fraction or len(rows) < 2:
        part = whole(name, rows)
    else:
        part, _ = hold_out(name, rows, fraction=fraction, seed=settings.get("split_seed", default.split_seed))
    return limit(part, settings.get("max_train_samples"))


def _may_share(trained: str, asked: str) -> bool:
    """Say whether two names of data may stand for files in common; a Hub id has none with another name."""
    one, other = Path(trained).expanduser().resolve(), Path(asked).expanduser().resolve()
    return trained == asked or one == other or one in other.parents or other in one.parents


def _trained_rows(member: ConversationDataset, trained: Sequence[Part]) -> list[int]:
    """Return which of a data set's rows a training used: the same row of the same file."""
    here = {name: _file(name) for name in member.rows.files}
    rows: set[tuple[str, int | None]] = set()
    for part in trained:
        there = {name: _file(name) for name in part.rows.files}
        if set(there.values()) & set(here.values()):
            sources = map(part.rows.source, part.indices)
            rows |= {(there[source.file], source.row) for source in sources}
    if not rows:
        return []
    return [index for index in range(len(member)) if (here[(source := member.source(index)).file], source.row) in rows]


def _file(name: str) -> str:
    """Return the one name of a file; that of a data set of the Hub stays."""
    return str(Path(name).expanduser().resolve()) if Path(name).is_file() else name
