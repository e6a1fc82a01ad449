"""Samples divided among tars: exact counts, every sample once, all tars or none."""

from __future__ import annotations

import json
import logging
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vlm_lora.data.formats.tar.index_files import FOLDER_INDEX, VERSION, beside
from vlm_lora.data.formats.tar.opening import is_tar
from vlm_lora.data.formats.tar.sampling import Samples
from vlm_lora.data.formats.tar.writing import Shard, write_shard
from vlm_lora.errors import ConfigError, DataError
from vlm_lora.progress import Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Division:
    """One split and how it is divided."""

    prefix: str
    """First part of the tars' names."""
    samples: Samples
    order: Sequence[int]
    """Numbers of the samples in the order they are written."""
    sizes: tuple[int, ...]
    """Samples of each tar."""


def divide(total: int, *, num_shards: int | None, samples_per_shard: int | None) -> tuple[int, ...]:
    """Return the number of samples of each tar.

    >>> divide(10, num_shards=4, samples_per_shard=None), divide(10, num_shards=None, samples_per_shard=4)
    ((3, 3, 2, 2), (4, 4, 2))

    Raises:
        ConfigError: Not exactly one of the two, below 1, or more tars than samples.
    """
    if (num_shards is None) == (samples_per_shard is None):
        raise ConfigError("Type either --num_shards N or --samples_per_shard N.")
    flag, given = ("num_shards", num_shards) if num_shards is not None else ("samples_per_shard", samples_per_shard)
    if given is None or given < 1:
        raise ConfigError(f"--{flag} {given}: must be 1 or more.")
    if num_shards is None:
        whole, rest = divmod(total, given)
        return (*[given] * whole, *([rest] if rest else []))
    if num_shards > total:
        raise ConfigError(f"--num_shards {num_shards}: there are {total} samples, and no tar may be empty.")
    each, more = divmod(total, num_shards)
    return tuple(each + (number < more) for number in range(num_shards))


def order_of(total: int, *, seed: int | None) -> Sequence[int]:
    """Return the order of the samples: as they are, or shuffled by a seed."""
    if seed is None:
        return range(total)
    order = list(range(total))
    random.Random(seed).shuffle(order)
    return order


def check_out_dir(out_dir: Path) -> None:
    """Refuse a folder that holds shards already. Raises ConfigError."""
    if out_dir.exists() and not out_dir.is_dir():
        raise ConfigError(f"--out_dir {out_dir}: not a folder.")
    there = (
        [p.name for p in sorted(out_dir.iterdir()) if is_tar(p) or p.name == FOLDER_INDEX] if out_dir.is_dir() else []
    )
    if there:
        raise ConfigError(f"--out_dir {out_dir} holds shards already ({there[0]}). Name an empty folder.")


def write_shards(divisions: Sequence[Division], out_dir: Path) -> tuple[Shard, ...]:
    """Write all tars, their indexes, and `index.json`.

    The tars are made in a hidden folder inside `out_dir` and moved at the end, `index.json` first: whoever reads an
    `out_dir` that was left half-moved is told which tars are missing.

    Raises:
        ConfigError: The folder holds shards already.
        DataError: A sample that cannot be written, or a full disk; nothing is left behind.
    """
    check_out_dir(out_dir)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=".shards-", dir=out_dir))
    except OSError as error:
        raise DataError(f"--out_dir {out_dir}: {error.strerror or error}.") from error
    try:
        shards = _write_all(divisions, making)
        record = {"version": VERSION, "samples": sum(s.samples for s in shards), "shards": [asdict(s) for s in shards]}
        (making / FOLDER_INDEX).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        names = [FOLDER_INDEX, *(name for s in shards for name in (beside(Path(s.name)).name, s.name))]
        for name in names:
            (making / name).rename(out_dir / name)
    except OSError as error:
        raise DataError(f"{making}: {error.strerror or error}. The tars need as much room as their content.") from error
    finally:
        shutil.rmtree(making)
    return shards


def _write_all(divisions: Sequence[Division], folder: Path) -> tuple[Shard, ...]:
    shards = []
    total = sum(len(division.order) for division in divisions)
    with Progress("Writing", total, "samples") as progress:
        for division in divisions:
            start = 0
            for number, size in enumerate(division.sizes):
                chosen = division.order[start : start + size]
                start += size
                samples = (division.samples[place] for place in chosen)
                shards.append(write_shard(folder / f"{division.prefix}-{number:06d}.tar", samples))
                progress.advance(size)
    return tuple(shards)
