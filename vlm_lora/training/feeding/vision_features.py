"""Whether a run keeps the features of its frozen vision tower (`--cache_vision_features`), and why or why not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerCallback

from vlm_lora.batching.prepared.room import room_for
from vlm_lora.batching.prepared.store import TensorStore
from vlm_lora.batching.row_table import RowTable
from vlm_lora.config.run_config import CACHE_GB, RunConfig
from vlm_lora.data.cache_folder import VARIABLE, cache_folder, cache_place
from vlm_lora.errors import ConfigError
from vlm_lora.model.audit import GradientAudit
from vlm_lora.model.families import Family
from vlm_lora.model.features.cache import FeatureCache, fingerprint, kept_dtype
from vlm_lora.model.features.obstacles import SHARDED, obstacle_in_model, obstacle_in_settings
from vlm_lora.model.features.rows import FeatureRows
from vlm_lora.model.features.tower import Tower
from vlm_lora.model.features.use import (
    ImageUse,
    blank_vectors,
    bytes_a_vector,
    count_vectors,
    spread_rows,
    survey_use,
    width_of,
)
from vlm_lora.model.parts import Parts, base_of, find_parts
from vlm_lora.training.engine import shards_weights
from vlm_lora.training.planning import shared_values

logger = logging.getLogger(__name__)

FILE = "vision_features.json"
FOLDER = "vision_features"
SETTING = "cache_vision_features"
AUTO = "auto"
GB = 10**9
LOOKED_AT = 16
"""Rows of each data set whose features are looked for, where they alone would be a reason to keep any."""


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A trainer, and what it knows of its rows."""

    run: RunConfig
    trainer: Any
    family: Family
    parts: Parts
    tables: Mapping[str, RowTable]
    encode: Callable[[str, int], Any]


def use_features(
    run: RunConfig,
    trainer: Any,
    family: Family,
    collator: Any,
    *,
    static_shapes: bool,
    tables: Mapping[str, RowTable],
    encode: Callable[[str, int], Any],
    before: str = AUTO,
) -> None:
    """Let a trainer keep the features of images where the settings want it and it pays, and say what was decided.

    A run that goes on from a checkpoint does what the checkpoint's run did: features that were made are the same but
    for rounding, and a disk that is fuller now is no reason for a run to end otherwise than it began.

    Args:
        run: the resolved configuration.
        trainer: as it was built, before it trains.
        family: of its model.
        collator: makes its batches.
        static_shapes: whether batch shapes are planned.
        tables: of the rows, by data set, on the first process of each machine; empty where no row was read.
        encode: returns row `index` of data set `name`, encoded.
        before: `on` or `off`, as the checkpoint that the run goes on from says; `auto` where none does.

    Raises:
        ConfigError: `on`, and it cannot be.
    """
    given = run.batching.cache_vision_features
    wanted = before if given == AUTO else given
    if given == "off":
        return
    reason, plan = "", dict[str, Any]()
    parts = find_parts(trainer.model, family)
    if wanted == "off":
        reason = "the run goes on from a checkpoint that was trained without them"
    else:
        reason = _obstacle(run, trainer, family, parts, static_shapes=static_shapes)
    if not reason:
        asked = _Asked(run=run, trainer=trainer, family=family, parts=parts, tables=tables, encode=encode)
        plan = shared_values(Path(trainer.args.output_dir) / FILE, trainer.args, lambda: _survey(asked))
        reason = plan["reason"] if wanted == AUTO or plan["refused"] else ""
    if not reason:
        _start(trainer, family, parts, collator, limit=plan["limit"])
        logger.info("%s", plan["said"])
    elif given == "on":
        raise ConfigError(f"--cache_vision_features on: {reason}. Leave it out, or type auto.")
    elif wanted == "on":
        logger.warning(
            "Vision features are not kept, unlike in the checkpoint's run: %s. What follows may differ from it by "
            "rounding (--cache_vision_features).",
            reason,
        )
    else:
        logger.info("Vision features are not kept: %s (--cache_vision_features).", reason)


def _obstacle(run: RunConfig, trainer: Any, family: Family, parts: Parts, *, static_shapes: bool) -> str:
    """Return why settings, model or engine allow no kept features; empty where they do."""
    trains = trainer.args.do_train
    reason = obstacle_in_settings(run, family, trains=trains, static_shapes=static_shapes)
    if not reason and trains:
        reason = obstacle_in_model(trainer.model, parts)
    if not reason and shards_weights(trainer):
        reason = SHARDED
    return reason


def _survey(asked: _Asked) -> dict[str, Any]:
    """Return what the processes of a machine decide by: `reason` against `auto`, whether `on` is `refused`, ..."""
    run, trainer, family, tables = asked.run, asked.trainer, asked.family, asked.tables
    config, folder = base_of(trainer.model).config, cache_place(FOLDER)
    store = TensorStore(folder)
    obstacle = store.obstacle()
    if obstacle:
        return {"reason": f"{obstacle}; set {VARIABLE} to a folder that can be", "refused": True}
    wanted = CACHE_GB if run.batching.vision_cache_gb is None else run.batching.vision_cache_gb
    limit = room_for(folder, wanted)
    plan: dict[str, Any] = {"reason": "", "refused": False, "limit": limit, "folder": str(folder)}
    allowed = f"(--vision_cache_gb {wanted:g}, and at most a tenth of the free disk, {folder})"
    dtype = kept_dtype(trainer.model, asked.parts, _autocast(trainer))
    one = bytes_a_vector(width_of(config, family.features), dtype)
    if limit < one:
        reason = f"one token of an image takes {one} bytes, and {limit} are allowed {allowed}"
        return {**plan, "reason": reason, "refused": True}
    times = _times(trainer, tables)
    if not any(times.values()):
        stream = (
            "a stream's rows are" if run.data.streaming else "without the check of the data (--skip_check) rows are"
        )
        reason = f"{stream} not known before training, so nobody knows how often an image is used"
        said = f"Vision features are kept in {folder}, of at most {limit / GB:.3g} GB; how many is not known before."
        return {**plan, "reason": reason, "said": said}
    read = {name: table for name, table in tables.items() if times[name]}
    use = survey_use(
        read,
        times,
        lambda name, row: count_vectors(asked.encode(name, row), config, family.features),
        vector_bytes=one,
        blank=blank_vectors(config, family.features),
    )
    plan |= asdict(use) | {"said": _said(use, dtype, folder)}
    if not use.different:
        return {**plan, "reason": "no row has an image", "refused": True}
    if use.size > limit:
        reason = (
            f"those of {use.different} rows' images take {use.size / GB:.3g} GB, and {limit / GB:.3g} GB are allowed "
            f"{allowed}"
        )
        return {**plan, "reason": reason, "refused": True}
    if use.uses <= use.different and not _lie_there(asked, store, read):
        return {**plan, "reason": "each image is used once"}
    return plan  # the store makes room as it grows: what lies there may be these very features


def _lie_there(asked: _Asked, store: TensorStore, read: Mapping[str, RowTable]) -> bool:
    """Say whether features of a few rows that the run reads were stored before, by a training for instance."""
    _, rows = _source(asked.trainer, asked.family, asked.parts, store)
    few = [(name, row) for name, table in read.items() for row in spread_rows(table, LOOKED_AT)]
    return any(rows.holds(asked.encode(name, row).media) for name, row in few)


def _said(use: ImageUse, dtype: torch.dtype, folder: Path) -> str:
    return (
        f"Vision features: the frozen tower runs once for each of {use.different} rows' images, which are used "
        f"{use.uses:.0f} times; {_size(use.size)} in {str(dtype).removeprefix('torch.')}, in {folder} "
        "(--cache_vision_features)."
    )


def _size(size: int) -> str:
    return f"{size / GB:.2f} GB" if size >= GB / 10 else f"{size / 10**6:.3g} MB"


def _times(trainer: Any, tables: Mapping[str, RowTable]) -> dict[str, float]:
    """Return how often the run reads the rows of each data set."""
    arguments = trainer.args
    epochs = 0.0
    if arguments.do_train:
        epochs = float(arguments.num_train_epochs)
        if arguments.max_steps > 0:
            step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
            epochs = arguments.max_steps * step / max(1, len(trainer.train_dataset))
    strategy = str(getattr(arguments.eval_strategy, "value", arguments.eval_strategy))
    evaluations = int(arguments.do_eval) + int(bool(arguments.eval_on_start)) + (0 if strategy == "no" else 2)
    return {name: epochs if name.startswith("train") else evaluations for name in tables}


def _autocast(trainer: Any) -> torch.dtype | None:
    """Return what the model's forward pass computes in, where that is not its weights' own dtype."""
    arguments = trainer.args
    return torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None


def _source(trainer: Any, family: Family, parts: Parts, store: TensorStore) -> tuple[Tower, FeatureRows]:
    """Return the tower of a trainer's model, and what finds its features in a store."""
    model = trainer.model
    mark = fingerprint(
        model,
        parts,
        kept=kept_dtype(model, parts, _autocast(trainer)),
        autocast=_autocast(trainer),
        engine=trainer.is_deepspeed_enabled,
        device=trainer.args.device.type,
        versions=(transformers.__version__, torch.__version__),
    )
    tower = Tower(model, family)
    return tower, FeatureRows(store, mark, tower.read_beside)


def _start(trainer: Any, family: Family, parts: Parts, collator: Any, *, limit: int) -> None:
    store = TensorStore(cache_folder(FOLDER), limit=limit)
    tower, rows = _source(trainer, family, parts, store)
    collator.take_features(rows)
    audits = [one for one in trainer.callback_handler.callbacks if isinstance(one, GradientAudit)]
    told = {"on_use": audits[0].note_image} if audits else {}
    dtype = kept_dtype(trainer.model, parts, _autocast(trainer))
    trainer.features = FeatureCache(tower, rows, store, dtype=dtype, **told)
    trainer.add_callback(FeaturesEnd(trainer.features))


class FeaturesEnd(TrainerCallback):
    """Says at the end how often the tower ran, and lets what was stored reach the disk."""

    def __init__(self, cache: FeatureCache) -> None:
        self._cache = cache

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say it."""
        self._cache.close()
        logger.info("Vision features: %d made, %d read.", self._cache.made, self._cache.read)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let what was stored reach the disk."""
        self._cache.close()
