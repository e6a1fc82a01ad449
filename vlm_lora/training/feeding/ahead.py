"""`vlm-lora cache`: images and vision features, made before the run that reads them."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from vlm_lora.batching.encoded import EncodedRow
from vlm_lora.batching.encoding import RowEncoder
from vlm_lora.batching.loading import each_batch
from vlm_lora.batching.prepared.store import TensorStore
from vlm_lora.config.run_config import RunConfig
from vlm_lora.data.cache_folder import cache_place
from vlm_lora.data.dataset import ConversationDataset, Splits
from vlm_lora.data.split_parts import split_parts
from vlm_lora.errors import ConfigError, DataError
from vlm_lora.launch.placement import refuse_several
from vlm_lora.model.families import Family
from vlm_lora.model.features.obstacles import obstacle_in_settings
from vlm_lora.training.checkpoints.resumption import Resumption, prepared_for
from vlm_lora.training.feeding.vision_features import FOLDER
from vlm_lora.training.inference_only import engines_asked

logger = logging.getLogger(__name__)

IMAGES = "prepared_images"
SETTINGS: Mapping[str, Any] = {"push_to_hub": False, "report_to": "none", "resume_from_checkpoint": None}
"""Keys of a run that mean nothing before it."""
EVERY = 5.0
"""Seconds between two lines about how far it is."""


@dataclass(frozen=True, kw_only=True)
class KeptAhead:
    """What `vlm-lora cache` has done."""

    rows: int
    """Rows that were gone through, of training and evaluation."""
    images: int
    """Images in them."""
    made: int | None
    """Rows' images that the tower was run for here; None where no features are kept."""
    read: int | None
    """Rows whose images' features were there: from before, or from another row with the same images."""
    before: Mapping[str, int]
    """Bytes of each folder of the cache at the start."""
    after: Mapping[str, int]
    """The same at the end."""


def sizes() -> dict[str, int]:
    """Return the bytes of what is kept now, by the name of its folder."""
    return {name: TensorStore(cache_place(name)).bytes_on_disk() for name in (IMAGES, FOLDER)}


def begin(run: RunConfig) -> tuple[RunConfig, Resumption]:
    """Return a run, and where it begins, with what the run that it is made for takes over from its checkpoint.

    Args:
        run: as it was given, with the `--output_dir` and `--resume_from_checkpoint` of that run.

    Raises:
        ConfigError: nothing can be made ahead (several processes, an engine, a stream), or there is no such checkpoint.
        ModelError: the model's configuration cannot be loaded.
    """
    refuse_several("cache", os.environ)
    for name in engines_asked(run):
        raise ConfigError(
            f"--{name}: its engine prepares the model, so features that are made without it are others. Leave "
            f"vlm-lora cache out: the run makes them itself. Or leave --{name} out here and type "
            "--cache_vision_features off: images alone are prepared."
        )
    if run.data.streaming:
        raise ConfigError("--streaming true: a stream's rows are not known before training. Leave vlm-lora cache out.")
    return prepared_for(run)


@contextmanager
def own_folder() -> Iterator[Path]:
    """Yield a folder for the report of the check; it stays where rows are bad, as messages name it."""
    folder = Path(tempfile.mkdtemp(prefix="vlm-lora-cache-"))
    try:
        yield folder
    except DataError:
        raise
    except BaseException:
        shutil.rmtree(folder)
        raise
    if not (folder / "quarantine.jsonl").exists():
        shutil.rmtree(folder)


def wants_features(run: RunConfig, family: Family, *, trains: bool, static_shapes: bool) -> bool:
    """Say, also in the log, whether the settings allow features; without them no weights need be loaded."""
    off = run.batching.cache_vision_features == "off"
    reason = "off" if off else obstacle_in_settings(run, family, trains=trains, static_shapes=static_shapes)
    if reason:
        logger.info("Vision features are not kept: %s (--cache_vision_features).", reason)
    return not reason


class Progress:
    """Says every few seconds how far it is.

    Args:
        total: rows.
        clock: returns seconds.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._clock = clock
        self._start = self._said = clock()
        self.rows = 0
        self.images = 0

    def add(self, images: int) -> None:
        """Count one row."""
        self.rows += 1
        self.images += images
        now = self._clock()
        if self.rows == self._total or now - self._said >= EVERY:
            self._said = now
            seconds = max(now - self._start, 1e-9)
            logger.info(
                "Cache: %d of %d rows, %.1f images/s, %s left.",
                self.rows,
                self._total,
                self.images / seconds,
                _spell((self._total - self.rows) * seconds / self.rows),
            )


def keep_ahead(
    run: RunConfig,
    arguments: Any,
    encoder: RowEncoder,
    splits: Splits,
    trainer: Any,
    *,
    before: Mapping[str, int],
) -> KeptAhead:
    """Go through all rows once: what is not kept yet is made, and on disk before the next.

    Args:
        run: the resolved configuration.
        arguments: the training arguments.
        encoder: of the rows.
        splits: the rows.
        trainer: as it was built, with the model; None where no features are wanted.
        before: `sizes` at the start.

    Raises:
        ConfigError: neither images nor features are kept.
        DataError: a row cannot be read.
    """
    features = None if trainer is None else trainer.features
    if features is None and not encoder.keeps_images:
        raise ConfigError(
            "vlm-lora cache: nothing can be kept, the lines above say why. --cache_vision_features on and "
            "--image_cache on insist."
        )
    parts, timeout = split_parts(splits), run.batching.dataloader_timeout
    progress = Progress(sum(len(rows) for rows in parts.values()))
    for rows in parts.values():
        encoded = each_batch(
            _Encoded(encoder, rows),
            _only,
            size=1,
            workers=min(arguments.dataloader_num_workers, len(rows)),
            timeout=timeout,
            name=_namer(rows),
        )
        for row, images in encoded:
            progress.add(images)
            if features is not None and row is not None and row.media:
                features.keep(row, trainer._prepare_inputs, trainer.accelerator.autocast)
    if features is not None:
        features.keep_blank(trainer._prepare_inputs, trainer.accelerator.autocast)
        features.close()
        if features.refused:
            raise ConfigError(
                f"vlm-lora cache: features of {features.refused} rows' images are not kept, for want of room: what "
                "other runs use now does not make room. Type a larger --vision_cache_gb, or free the disk."
            )
    return KeptAhead(
        rows=progress.rows,
        images=progress.images,
        made=None if features is None else features.made,
        read=None if features is None else features.read,
        before=before,
        after=sizes(),
    )


def _namer(rows: ConversationDataset) -> Callable[[int], str]:
    return lambda index: str(rows.source(index))


def _only(rows: list[tuple[EncodedRow | None, int]]) -> tuple[EncodedRow | None, int]:
    return rows[0]


class _Encoded(Dataset[tuple[EncodedRow | None, int]]):
    """Rows as training encodes them, and how many images they have. Can be pickled."""

    def __init__(self, encoder: RowEncoder, rows: ConversationDataset) -> None:
        self._encoder = encoder
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[EncodedRow | None, int]:
        row = self._rows[index]
        return self._encoder.encode_kept(row), len(row.images)


def _spell(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
