"""Whether images are prepared once, decided before any row is read: `--image_cache`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from vlm_lora.batching.collator import Collator
from vlm_lora.batching.encoding import RowEncoder
from vlm_lora.batching.prepared.room import room_for
from vlm_lora.batching.prepared.store import TensorStore
from vlm_lora.config.run_config import RunConfig
from vlm_lora.data.cache_folder import cache_place
from vlm_lora.data.conversation import Conversation
from vlm_lora.data.dataset import ConversationDataset, Splits
from vlm_lora.data.split_parts import split_parts
from vlm_lora.errors import ConfigError, DataError
from vlm_lora.session import Preprocessing

logger = logging.getLogger(__name__)

SAMPLE = 16
"""Rows of each data set that are prepared to see what the others will take."""


@dataclass(frozen=True, kw_only=True)
class _Sampled:
    """What some rows of a data set have taken."""

    rows: int
    size: int
    """Bytes."""


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
        return preprocessing
    # The check before training reads each row as well.
    if wanted == "auto" and epochs == 1 and run.data.skip_check:
        logger.info("Image cache: off, as each row is read once. --image_cache on keeps images for the next run.")
        return preprocessing
    folder = cache_place("prepared_images")
    store = TensorStore(folder, limit=room_for(folder, run.batching.image_cache_gb))
    encoder = preprocessing.encoder.keeping_images(store)
    needed = _needed(split_parts(splits), encoder, store)
    if needed == 0:  # text alone
        return preprocessing
    if not _fits(needed, store, wanted):
        return preprocessing
    collator = Collator(encoder, preprocessing.family.rendering, pad_token_id=preprocessing.tokenizer.pad_token_id)
    return replace(preprocessing, encoder=encoder, collator=collator)


def _fits(needed: int, store: TensorStore, wanted: str) -> bool:
    """Say, also in the log, whether images are kept."""
    assert store.limit is not None
    allowed = f"{_spell(store.limit)} are allowed (--image_cache_gb, and at most a tenth of the free disk)"
    if needed <= store.limit:
        logger.info(
            "Image cache: on, about %s in %s; %s. Each image is prepared once for its questions, epochs and runs.",
            _spell(needed),
            store.folder,
            allowed,
        )
        return True
    if wanted == "on":
        logger.info(
            "Image cache: on, for as many images as fit: about %s would be needed in %s; %s.",
            _spell(needed),
            store.folder,
            allowed,
        )
        return True
    logger.info(
        "Image cache: off: about %s would be needed in %s; %s. --image_cache on keeps as many images as fit.",
        _spell(needed),
        store.folder,
        allowed,
    )
    return False


def _spell(size: int) -> str:
    """Write bytes in the largest unit that leaves a number above one."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"


def _needed(parts: Mapping[str, ConversationDataset], encoder: RowEncoder, store: TensorStore) -> int:
    """Return about how many bytes the images of all rows take, prepared."""
    assert store.limit is not None
    total = 0
    for rows in parts.values():
        sampled = _sample(rows, encoder, store)
        if not sampled.size:
            continue
        size = sampled.size * len(rows) // sampled.rows
        if size > store.limit:
            # Rows that show the same images take the room of one; to see that costs a look at each row.
            size = size * _different(rows) // len(rows)
        total += size
    return total


def _sample(rows: ConversationDataset, encoder: RowEncoder, store: TensorStore) -> _Sampled:
    """Prepare a few rows, evenly spread: what is made stays."""
    count = min(SAMPLE, len(rows))
    read, before = 0, _handled(store)
    for number in range(count):
        try:
            encoder.prepare_images(rows[number * len(rows) // count])
        except DataError:  # the check says so
            continue
        read += 1
    return _Sampled(rows=max(1, read), size=_handled(store) - before)


def _handled(store: TensorStore) -> int:
    """Return the bytes of all entries that were asked for or made, whether they are kept or not."""
    found = store.statistics
    return found.bytes_read + found.bytes_written + found.bytes_refused


def _different(rows: ConversationDataset) -> int:
    """Return how many rows show images that no row before them shows."""
    seen: set[bytes] = set()
    for index in range(len(rows)):
        try:
            seen.add(_images_of(rows[index]))
        except DataError:
            continue
    return max(1, len(seen))


def _images_of(conversation: Conversation) -> bytes:
    digest = sha256()
    for image in conversation.images:
        if isinstance(image.source, bytes):
            digest.update(sha256(image.source).digest())
        else:
            digest.update(str(image.source if isinstance(image.source, Path) else repr(image.source)).encode())
    return digest.digest()
