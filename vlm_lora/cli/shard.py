"""`vlm-lora shard`: write any source that --dataset_name takes as WebDataset tars with an index."""

from __future__ import annotations

import logging
import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from vlm_lora.cli.setup import configure, verb_parser
from vlm_lora.data.wording import counted
from vlm_lora.errors import ConfigError, DataError, nearest

logger = logging.getLogger(__name__)

HELP = """\
vlm-lora shard --input DATA --out_dir DIR (--num_shards N | --samples_per_shard N) [flags]

Writes tars of KEY.json and KEY.png (or the image's own format), the same bytes for the same input, each with an
index next to it, and index.json with the number of samples and the SHA-256 of every tar. Every sample is written
exactly once; members of tars and images are copied byte for byte. Dashes and underscores are the same.

  --input DATA           what --dataset_name takes: tars, a glob, {0000..0007}, JSONL, Parquet, a Hub id, ...
  --out_dir DIR          where the tars go; it must not hold any
  --num_shards N         so many tars of (nearly) the same number of samples, for each split
  --samples_per_shard N  so many samples in each tar, the rest in the last one
  --shuffle              in a random order, by --seed
  --seed N               (17)
  --prefix NAME          tars are called NAME-000000.tar; by default the split's name, such as train
  --img_exts EXT ...     of tars, take only images with these extensions, such as png jpg jpeg
  --meta_ext EXT         of tars, take only JSON or text with this extension, such as json

Of the other flags (vlm-lora train --help), --image_column, --image_root, --dataset_config_name, --max_image_pixels
and --max_image_bytes count here."""

_PREFIX = re.compile(r"[A-Za-z0-9][\w-]*")


def run(rest: Sequence[str]) -> None:
    """Parse the flags, write the shards, and say what was written.

    Raises:
        ConfigError: A flag that is missing or cannot be used.
        DataError: Data that cannot be read or written.
    """
    own, others = _parse(rest)
    given = configure(others, {}, verb="shard", keys=False)
    unknown = next((key for key in given.raw if key != "log_level"), None)
    if unknown is not None:
        flags = [*vars(own), *vars(given.data)]
        raise ConfigError(f"vlm-lora shard --{unknown}: no such flag.{nearest(unknown, flags)}")
    config = given.data
    name = ",".join(own.input) if own.input else config.dataset_name
    if name is None or own.out_dir is None:
        missing = "--input DATA" if name is None else "--out_dir DIR"
        raise ConfigError(f"vlm-lora shard: {missing} is missing. vlm-lora shard --help lists the flags.")
    from vlm_lora.data.formats.tar.sampling import MemberChoice, samples_of
    from vlm_lora.data.formats.tar.sharding import Division, check_out_dir, divide, order_of, write_shards
    from vlm_lora.data.sources.named import open_source

    choice = MemberChoice(pictures=_extensions(own.img_exts), meta=_extension(own.meta_ext))
    choice.check()
    out_dir = Path(own.out_dir).expanduser()
    check_out_dir(out_dir)
    source = open_source(name, config_name=config.dataset_config_name, flag="input")
    divisions = []
    for split, rows in source.splits.items():
        if not len(rows):
            raise DataError(f"The split '{split}' ({', '.join(rows.files)}) has no rows.")
        divisions.append(
            Division(
                prefix=_prefix(own.prefix, split, len(source.splits)),
                samples=samples_of(rows, config, choice),
                order=order_of(len(rows), seed=own.seed if own.shuffle else None),
                sizes=divide(len(rows), num_shards=own.num_shards, samples_per_shard=own.samples_per_shard),
            )
        )
    shards = write_shards(divisions, out_dir)
    samples = counted(sum(shard.samples for shard in shards), "sample")
    print(f"{samples} in {counted(len(shards), 'tar')} in {out_dir}:")
    for shard in shards:
        print(f"  {shard.name}  {counted(shard.samples, 'sample')}  {shard.bytes} bytes  sha256 {shard.sha256[:16]}")


def _parse(rest: Sequence[str]) -> tuple[Namespace, list[str]]:
    parser = verb_parser("shard")
    parser.add_argument("--input", nargs="+")
    parser.add_argument("--img_exts", nargs="+")
    for flag in ("out_dir", "meta_ext", "prefix"):
        parser.add_argument(f"--{flag}")
    for flag in ("num_shards", "samples_per_shard"):
        parser.add_argument(f"--{flag}", type=int)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--shuffle", action="store_true")
    return parser.parse_known_args([_underscored(word) for word in rest])


def _underscored(word: str) -> str:
    """Write a flag's dashes as underscores; its value stays."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word[2:].partition("=")
    return f"--{flag.replace('-', '_')}{equals}{value}"


def _extension(text: str | None) -> str | None:
    return text.strip().lower().lstrip(".") if text else None


def _extensions(words: Sequence[str] | None) -> frozenset[str] | None:
    found = {_extension(part) for word in words or () for part in word.split(",")}
    return frozenset(part for part in found if part) or None


def _prefix(given: str | None, split: str, splits: int) -> str:
    """Return the tars' first part: what was set, else the split's name."""
    if given is None:
        return re.sub(r"[^\w-]+", "_", split)
    if not _PREFIX.fullmatch(given):
        raise ConfigError(f"--prefix {given}: letters, digits, - and _ only, a letter or digit first.")
    if splits > 1:
        raise ConfigError(
            f"--prefix {given}: the data has {splits} splits, which would get the same names. Leave --prefix out, or "
            "name one file with --input."
        )
    return given
