"""Rows by number as conversations, and the one call that turns a configuration into them."""

from __future__ import annotations

import copy
import logging
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.columns.annotations import refuse_unused
from vlm_lora.data.columns.schema import Schema, detect_schema
from vlm_lora.data.columns.search import SAMPLE
from vlm_lora.data.columns.unknown import note_missing, refuse_unknown
from vlm_lora.data.conversation import Conversation, RowSource
from vlm_lora.data.conversations.layouts import build_asked, build_conversation
from vlm_lora.data.formats.rows import Rows
from vlm_lora.data.images.values import ImagePlace
from vlm_lora.data.mixture import Mixture, check_weights, split_names
from vlm_lora.data.ocr.task_answers import Draw
from vlm_lora.data.ocr.task_sampling import Ask
from vlm_lora.data.sources.named import Source, open_source
from vlm_lora.data.sources.streams import RowStream, open_stream
from vlm_lora.data.splits import Part, hold_out, limit, pick_split, pick_train, whole
from vlm_lora.data.wording import counted, quoted
from vlm_lora.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


class ConversationDataset:
    """Conversations by number. Nothing is read before it is asked for; picklable for loader workers."""

    def __init__(self, part: Part, schema: Schema, config: DataConfig) -> None:
        self.name = part.name
        """The split as the log names it."""
        self.schema = schema
        self.rows = part.rows
        self._indices = part.indices
        self._image_root = _open_image_root(config.image_root)
        self._system_prompt = config.system_prompt
        self._allow_urls = config.allow_urls
        self._hub_roots = _hub_roots(part.rows)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Conversation:
        """Return one conversation, of epoch 0; its images are references, not decoded yet.

        Raises:
            DataError: The row cannot be used; the message begins with file and row.
            IndexError: Outside -len .. len - 1.
        """
        return self.at(index)

    @property
    def varies(self) -> bool:
        """Whether a row's conversation depends on the epoch."""
        return self.schema.page is not None

    def at(self, index: int, *, epoch: int = 0, repeat: int = 0) -> Conversation:
        """Return one conversation as it is in an epoch; `repeat` counts its earlier times in that epoch.

        Raises:
            DataError: The row cannot be used; the message begins with file and row.
            IndexError: Outside -len .. len - 1.
        """
        position = self._indices[index]
        return self.converse(
            self.rows[position],
            source=self.rows.source(position),
            folder=self.rows.origin(position).folder,
            draw=Draw(epoch=epoch, row=position, repeat=repeat),
        )

    def converse(self, row: Mapping[str, Any], *, source: RowSource, folder: Path | None, draw: Draw) -> Conversation:
        """Return the conversation that a row becomes, one of these or another of the same columns.

        Args:
            row: the values.
            source: where the row came from, for messages.
            folder: where relative image paths start unless `--image_root` says so; None for a Hub data set.
            draw: what chance depends on.

        Raises:
            DataError: The row cannot be used; the message begins with file and row.
        """
        place = self._place(folder)
        return build_conversation(
            row, self.schema, source=source, place=place, system_prompt=self._system_prompt, draw=draw
        )

    def asked(self, index: int, ask: Ask) -> list[Conversation]:
        """Return a page's conversations with what `ask` asks, which share their image. Raises as `at` does."""
        position = self._indices[index]
        return build_asked(
            self.rows[position],
            self.schema,
            source=self.rows.source(position),
            place=self._place(self.rows.origin(position).folder),
            system_prompt=self._system_prompt,
            ask=ask,
            number=position,
        )

    def _place(self, folder: Path | None) -> ImagePlace:
        start = self._image_root or folder
        return ImagePlace(
            folder=start,
            roots=(start,) if start else self._hub_roots,
            data_folder=folder if self._image_root is not None else None,
            allow_urls=self._allow_urls,
            by_id=self.schema.image_ids,
        )

    def without(self, positions: Collection[int]) -> ConversationDataset:
        """Return the same data set with the conversations at these positions left out."""
        gone = frozenset(positions)
        kept = copy.copy(self)
        kept._indices = array("q", (row for place, row in enumerate(self._indices) if place not in gone))
        return kept

    def source(self, index: int) -> RowSource:
        """Return file and row of a conversation without reading it."""
        return self.rows.source(self._indices[index])

    @property
    def positions(self) -> Sequence[int]:
        """Which of `rows` these are, in order."""
        return self._indices


Conversations: TypeAlias = "ConversationDataset | Mixture[ConversationDataset]"
"""The rows of one data set, or of several together."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """What a run trains on and what it is measured on; None where it was not asked for."""

    train: Conversations | None
    validation: Conversations | None
    explanation: str
    """Which splits, rows and columns were taken, and why; several lines of text."""
    stream: RowStream | None = None
    """With `--streaming`: all rows to train on, front to back; `train` has the first of them."""


def load_splits(config: DataConfig, *, need_train: bool, need_validation: bool) -> Splits:
    """Open the data a run needs, detect its columns, and divide it; several data sets each on its own.

    Args:
        config: What the user asked for.
        need_train: Whether a training split is needed.
        need_validation: Whether a validation split is needed; without one in the data, a seeded share of the
            training rows is held out (and is not in `train`).

    Raises:
        DataError: No data named, nothing usable there, an empty split, or columns that cannot be told apart.
        ConfigError: Weights that are not one for each data set, or settings that none of the data sets reads.
    """
    names = split_names(config.dataset_name)
    weights = check_weights(names, config.dataset_weights)
    stream = open_stream(config) if config.streaming and need_train else None
    if stream is not None:
        splits = _load_streamed(config, stream, need_validation=need_validation)
    elif len(names) > 1 or config.dataset_weights:
        splits = _load_mixture(config, names, weights, need_train=need_train, need_validation=need_validation)
    else:
        one = _load_one(config, need_train=need_train, need_validation=need_validation)
        splits = Splits(train=one.train, validation=one.validation, explanation=one.explanation)
    logger.info("Data:\n%s", splits.explanation)
    members = [member for data in (splits.train, splits.validation) for member in each_data_set(data)]
    refuse_unused(config, [member.schema.layout for member in members])
    refuse_unknown(config, [member.schema.unknown for member in members])
    if stream is None:  # a stream may have the columns in later rows
        note_missing(config, {column for member in members for column in member.rows.columns})
    return splits


def _load_streamed(config: DataConfig, stream: RowStream, *, need_validation: bool) -> Splits:
    """Read the first rows of a stream, which say what its columns are; validation data must be named."""
    if need_validation and config.validation_name is None:
        raise ConfigError(
            f"--streaming true: no rows of {stream.name} are held out to evaluate on, because nothing but reading all "
            "of it says how many there are. Type --validation_name with other data, or --do_eval false."
        )
    rows = stream.head(SAMPLE)
    notes = [
        f"train: {stream.name} as a stream, front to back; the first "
        f"{counted(len(rows), 'row says', 'rows say')} what it is"
    ]
    train = _finish(whole("train", rows), config, None, notes)
    if not need_validation:
        return Splits(train=train, validation=None, explanation="\n".join(notes), stream=stream)
    named = _load_one(replace(config, dataset_name=None), need_train=False, need_validation=True)
    notes.append(named.explanation)
    return Splits(train=train, validation=named.validation, explanation="\n".join(notes), stream=stream)


def each_data_set(data: Conversations | None) -> Sequence[ConversationDataset]:
    """Return the data sets that are read together; none for None."""
    if data is None:
        return ()
    return data.members if isinstance(data, Mixture) else (data,)


def _load_mixture(
    config: DataConfig, names: Sequence[str], weights: Sequence[float], *, need_train: bool, need_validation: bool
) -> Splits:
    """Load each data set as if it were alone, and put them together; separate validation data is loaded once."""
    separate = config.validation_name is not None
    trained, measured, notes = [], [], []
    if separate and need_validation:
        alone = _load_one(replace(config, dataset_name=None), need_train=False, need_validation=True)
        measured.append(alone.validation)
        notes.append(alone.explanation)
    needed = need_train or not separate
    for name, weight in zip(names, weights, strict=True) if needed else ():
        try:
            one = _load_one(
                replace(config, dataset_name=name),
                need_train=need_train,
                need_validation=need_validation and not separate,
            )
        except DataError as error:
            raise type(error)(f"--dataset_name {name}: {error}") from error
        trained.append(one.train)
        measured.append(one.validation)
        rows = "" if one.train is None else f": {one.train.name} is seen {weight:g} times an epoch"
        notes.append(f"data set {name}{rows}\n{one.explanation}")
    train = [data for data in trained if data is not None]
    validation = [data for data in measured if data is not None]
    return Splits(
        train=Mixture(train, weights, seed=config.split_seed) if train else None,
        validation=Mixture(validation, [1.0] * len(validation), seed=config.split_seed) if validation else None,
        explanation="\n".join(notes),
    )


@dataclass(frozen=True, kw_only=True)
class _One:
    """What one data set gives."""

    train: ConversationDataset | None
    validation: ConversationDataset | None
    explanation: str


def _load_one(config: DataConfig, *, need_train: bool, need_validation: bool) -> _One:
    notes: list[str] = []
    train: Part | None = None
    validation: Part | None = None
    source = None
    if config.dataset_name is not None and (need_train or config.validation_name is None):
        source = open_source(config.dataset_name, config_name=config.dataset_config_name)
    elif config.validation_name is None or need_train:
        raise DataError("No data is named. Type --dataset_name with a Hub id, file, folder or glob.")
    if need_validation:
        validation = _take_validation(config, source, need_train, notes)
    if need_train and source is not None:
        train, validation = _take_train(config, source, validation, need_validation, notes)
    elif need_validation and validation is None and source is not None:
        validation = _hold_out_for_evaluation(config, source, notes)
    trained = _finish(train, config, config.max_train_samples, notes)
    measured = _finish(validation, config, config.max_eval_samples, notes, trained)
    return _One(train=trained, validation=measured, explanation="\n".join(notes))


def _take_validation(config: DataConfig, source: Source | None, need_train: bool, notes: list[str]) -> Part | None:
    """Return the validation split that the data names, or None where one must be held out."""
    if config.validation_name is not None:
        named = open_source(config.validation_name, config_name=config.dataset_config_name, flag="validation_name")
        if len(named.splits) == 1:
            name, rows = next(iter(named.splits.items()))
        else:
            picked = pick_split(named.splits, "validation", where=named.name)
            if picked is None:
                raise DataError(
                    f"--validation_name {named.name} has the splits {quoted(named.splits)} and none is a validation "
                    "split. Name the one to use as a file or folder."
                )
            name, rows = picked
        notes.append(f"validation: '{name}' of {named.name}, named by --validation_name")
        return whole(f"{named.name} [{name}]", rows)
    assert source is not None  # load_splits has refused the other case
    picked = pick_split(source.splits, "validation", where=source.name)
    if picked is None and not need_train and pick_train(source.splits, where=source.name) is None:
        # Only a test split: evaluating on it is what was asked for.
        picked = pick_split(source.splits, "test", where=source.name)
    if picked is None:
        return None
    notes.append(f"validation: the split '{picked[0]}' of {source.name}")
    return whole(picked[0], picked[1])


def _take_train(
    config: DataConfig, source: Source, validation: Part | None, need_validation: bool, notes: list[str]
) -> tuple[Part, Part | None]:
    picked = pick_train(source.splits, where=source.name)
    if picked is None:
        raise DataError(
            f"--dataset_name {source.name} has no split to train on; it has {quoted(source.splits)}. Validation and "
            "test splits are never trained on: name other data, or rename the file if its name misleads."
        )
    name, rows = picked
    if pick_split(source.splits, "test", where=source.name) is not None:
        notes.append("test: not used, neither for training nor for validation")
    if _must_hold_out(config, source, validation, rows, need_validation):
        train, held = hold_out(name, rows, fraction=config.validation_fraction, seed=config.split_seed)
        notes.append(
            f"train: the split '{name}' of {source.name} without the {counted(len(held.indices), 'row')} held out\n"
            f"validation: {len(held.indices)} of its {len(rows)} rows ({config.validation_fraction:g}, "
            f"seed {config.split_seed}), because the data names no validation split"
        )
        return train, held if need_validation else None
    notes.append(f"train: the split '{name}' of {source.name}, all of it")
    return whole(name, rows), validation


def _must_hold_out(
    config: DataConfig, source: Source, validation: Part | None, rows: Rows, need_validation: bool
) -> bool:
    """Say whether rows are held out: also when this run measures nothing, so that a later evaluation may.

    Raises:
        DataError: a validation split is needed, there is none, and none may be held out.
    """
    if validation is not None or config.validation_name is not None:
        return False
    if not need_validation:
        named = pick_split(source.splits, "validation", where=source.name) is not None
        return not named and config.validation_fraction > 0 and len(rows) > 1
    if config.validation_fraction == 0:
        raise DataError(
            f"{source.name} names no validation split and --validation_fraction 0 holds none out. Type "
            "--validation_name with data to evaluate on, a share such as --validation_fraction 0.05, or "
            "--do_eval false to train on all rows and evaluate on none."
        )
    return True


def _hold_out_for_evaluation(config: DataConfig, source: Source, notes: list[str]) -> Part:
    """Hold out the same rows that training with the same data, fraction and seed holds out."""
    picked = pick_train(source.splits, where=source.name)
    if picked is None:
        raise DataError(f"--dataset_name {source.name} has no split to evaluate on; it has {quoted(source.splits)}.")
    name, rows = picked
    _must_hold_out(config, source, None, rows, True)
    _, held = hold_out(name, rows, fraction=config.validation_fraction, seed=config.split_seed)
    notes.append(
        f"validation: the {len(held.indices)} of {len(rows)} rows that training on {source.name} holds out "
        f"({config.validation_fraction:g}, seed {config.split_seed}), because the data names no validation split. "
        "Name the file with --validation_name to evaluate on all of it"
    )
    return held


def _finish(
    part: Part | None,
    config: DataConfig,
    count: int | None,
    notes: list[str],
    sibling: ConversationDataset | None = None,
) -> ConversationDataset | None:
    """Detect a part's columns, or take over those of a data set of the same rows."""
    if part is None:
        return None
    if not len(part.rows) or not len(part.indices):
        raise DataError(f"The split '{part.name}' ({', '.join(part.rows.files)}) has no rows.")
    kept = limit(part, count)
    shared = sibling is not None and sibling.rows is part.rows
    schema = sibling.schema if sibling is not None and shared else detect_schema(part.rows, config)
    fewer = f" (the first of {len(part.indices)})" if len(kept.indices) < len(part.indices) else ""
    lines = ["columns as above"] if shared else schema.explain().splitlines()
    indented = "\n".join(f"  {line}" for line in lines)
    notes.append(f"{part.name}: {counted(len(kept.indices), 'row')}{fewer}\n{indented}")
    return ConversationDataset(kept, schema, config)


def _open_image_root(name: str | None) -> Path | None:
    if name is None:
        return None
    root = Path(name).expanduser()
    if not root.is_dir():
        raise DataError(f"--image_root {name}: no such folder (looked at {root.absolute()}).")
    return root.resolve()


def _hub_roots(rows: Rows) -> tuple[Path, ...]:
    """Return where a Hub data set's own files lie; only its rows have no folder of their own."""
    if all(rows.origin(i).folder is not None for i in range(min(1, len(rows)))):
        return ()
    import datasets
    import huggingface_hub

    return (Path(huggingface_hub.constants.HF_HUB_CACHE), Path(datasets.config.HF_DATASETS_CACHE))
