"""Whether images are prepared once, decided before any row is read: `--image_cache`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

from vlm_lora.batching.collator import Collator
from vlm_lora.batching.encoding import RowEncoder
from vlm_lora.batching.prepared.room import room_for
from vlm_lora.batching.prepared.store import TensorStore
from vlm_lora.config.run_config import CACHE_GB, RunConfig
from vlm_lora.data.cache_folder import VARIABLE, cache_place
from vlm_lora.data.conversation import Conversation
from vlm_lora.data.dataset import ConversationDataset, Splits
from vlm_lora.data.split_parts import split_parts
from vlm_lora.errors import ConfigError, DataError
from vlm_lora.session import Preprocessing

logger = logging.getLogger(__name__)

SAMPLE, LARGE_SAMPLE = 16, 64
"""Images of each data set that are prepared to see what the others will take; more where they differ in size."""
_SURE = 0.02
"""A mean is taken for that of all images where it is as sure as that."""
_ENDS = 4096
"""Bytes at both ends of an image by which images in memory are told apart."""


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """What the rows of a data set show. Images of one row count as one."""

    rows: ConversationDataset
    count: int
    """Rows with images."""
    different: Sequence[int]
    """Rows whose images no row before them shows."""
    unread: int
    """Rows that cannot be read."""


@dataclass(frozen=True, kw_only=True)
class _Needed:
    """What the images of a run take, prepared, in bytes."""

    total: int
    least: int
    """Of one row of the sample; 0 where there is none."""


def with_image_cache(
    run: RunConfig, splits: Splits, preprocessing: Preprocessing, *, epochs: int | None
) -> Preprocessing:
    """Return preprocessing that keeps what it makes of images, where `--image_cache` asks for it or it pays.

    Args:
        run: the resolved configuration.
        splits: the rows.
        preprocessing: what prepares them.
        epochs: how often training reads each row; None where nothing says it, which is taken for several times.

    Raises:
        ConfigError: it was asked for and cannot be.
    """
    wanted = run.batching.image_cache
    if wanted == "off":
        return preprocessing
    if splits.stream is not None:
        if wanted == "on":
            raise ConfigError(
                "--image_cache on does not go with --streaming true: a stream reads each image once, and may have more "
                "than a disk holds. Leave one of them out."
            )
        logger.info("Image cache: off, as a stream reads each image once (--image_cache).")
        return preprocessing
    # The check before training reads each row as well.
    if wanted == "auto" and epochs == 1 and run.data.skip_check:
        logger.info("Image cache: off, as each row is read once. --image_cache on keeps images for the next run.")
        return preprocessing
    shown = _look_at(split_parts(splits))
    if not any(part.count for part in shown):
        if wanted == "on" and not any(part.unread for part in shown):
            raise ConfigError("--image_cache on: no row has an image. Leave it out, or type auto.")
        if not any(part.unread for part in shown):
            logger.info("Image cache: off, as no row has an image (--image_cache).")
        return preprocessing
    folder = cache_place("prepared_images")
    asked = CACHE_GB if run.batching.image_cache_gb is None else run.batching.image_cache_gb
    store = TensorStore(folder, limit=room_for(folder, asked))
    obstacle = store.obstacle()
    if obstacle:
        reason = f"{obstacle}. Set {VARIABLE} to a folder that can be, or type --image_cache off."
        if wanted == "on":
            raise ConfigError(f"--image_cache on: {reason}")
        logger.info("Image cache: off: %s", reason)
        return preprocessing
    encoder = preprocessing.encoder.keeping_images(store)
    needed = _needed(shown, encoder)
    if needed.least == 0 or not _fits(needed, store, wanted, asked):  # no image can be read: the check says so
        return preprocessing
    collator = Collator(encoder, preprocessing.family.rendering, pad_token_id=preprocessing.tokenizer.pad_token_id)
    return replace(preprocessing, encoder=encoder, collator=collator)


def _fits(needed: _Needed, store: TensorStore, wanted: str, asked: float) -> bool:
    """Say, also in the log, whether images are kept.

    Raises:
        ConfigError: they were to be, and there is no room for one.
    """
    assert store.limit is not None
    verb = "is" if store.limit == 1 else "are"
    allowed = f"{_spell(store.limit)} {verb} allowed (--image_cache_gb {asked:g}, and at most a tenth of the free disk)"
    size, folder = _spell(needed.total), store.folder
    if needed.total <= store.limit:
        logger.info(
            "Image cache: on, about %s in %s; %s. Each image is prepared once for its questions, epochs and runs.",
            *(size, folder, allowed),
        )
        return True
    if wanted == "auto":
        logger.info(
            "Image cache: off: about %s would be needed in %s; %s. --image_cache on keeps as many images as fit.",
            *(size, folder, allowed),
        )
        return False
    if needed.least > store.limit:
        raise ConfigError(
            f"--image_cache on: an image takes {_spell(needed.least)} or more, and {allowed}, so none can be kept in "
            f"{folder}. Type a larger --image_cache_gb, or --image_cache off."
        )
    logger.info(
        "Image cache: on, for as many images as fit: about %s would be needed in %s; %s.", size, folder, allowed
    )
    return True


def _spell(size: int) -> str:
    """Write bytes in the largest unit that leaves a number above one."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return "1 byte" if size == 1 else f"{size} bytes"


def _look_at(parts: Mapping[str, ConversationDataset]) -> list[_Shown]:
    """Return what rows show: those that show the same images take the room of one, which a look at each row tells."""
    seen: set[bytes] = set()
    shown = []
    for rows in parts.values():
        count, unread, different = 0, 0, []
        for index in range(len(rows)):
            try:
                row = rows[index]
            except DataError:  # the check says so
                unread += 1
                continue
            if not row.images:
                continue
            count += 1
            images = _images_of(row)
            if images not in seen:
                different.append(index)
                seen.add(images)
        shown.append(_Shown(rows=rows, count=count, different=different, unread=unread))
    return shown


def _needed(shown: Sequence[_Shown], encoder: RowEncoder) -> _Needed:
    """Return about what the images of all rows take, prepared, with what is kept of the rows themselves."""
    total, least, own = 0.0, 0, 0.0
    for part in shown:
        sizes = _sample(part, encoder)
        if sizes:
            own = mean(row for _, row in sizes)
            total += mean(images for images, _ in sizes) * len(part.different)
            smallest = min(images for images, _ in sizes)
            least = min(least or smallest, smallest)
        total += own * part.count
    return _Needed(total=round(total), least=least)


def _sample(part: _Shown, encoder: RowEncoder) -> list[tuple[int, int]]:
    """Prepare a few rows, evenly spread: what is made stays. Return the bytes of their images, and of themselves."""
    tried: dict[int, tuple[int, int] | None] = {}
    sizes: list[tuple[int, int]] = []
    for wanted in (SAMPLE, LARGE_SAMPLE):
        count = min(wanted, len(part.different))
        for number in range(count):
            index = part.different[number * len(part.different) // count]
            if index not in tried:
                try:
                    tried[index] = encoder.prepare_images(part.rows[index])
                except DataError:  # the check says so
                    tried[index] = None
        sizes = [found for found in tried.values() if found is not None]
        images = [size for size, _ in sizes]
        if len(images) < 2 or stdev(images) <= _SURE * mean(images) * sqrt(len(images)):
            break
    return sizes


def _images_of(conversation: Conversation) -> bytes:
    digest = sha256()
    for image in conversation.images:
        source = image.source
        if isinstance(source, bytes):
            digest.update(b"%d " % len(source) + source[:_ENDS] + source[-_ENDS:])
        else:
            digest.update(str(source if isinstance(source, Path) else repr(source)).encode(errors="surrogatepass"))
        digest.update(f" {image.size}\0".encode())
    return digest.digest()
