"""`vlm-lora cache`: prepare images and take vision features ahead of a run; list what is kept, and clear it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from vlm_lora.cli.setup import configure, verb_parser
from vlm_lora.config.early import DATA, MODEL
from vlm_lora.data.cache_folder import CACHES, cache_place, clear, kept_files
from vlm_lora.data.wording import counted
from vlm_lora.errors import ConfigError, nearest
from vlm_lora.launch.placement import refuse_several

UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def flags() -> argparse.ArgumentParser:
    """Return the parser of this verb's own flags."""
    parser = verb_parser("cache")
    parser.add_argument("--list", action="store_true", help="say what is kept, where, and how large it is; no run")
    parser.add_argument("--clear", nargs="+", metavar="NAME", help="remove what is kept under these names, or all")
    return parser


def cache(rest: Sequence[str]) -> None:
    """Run the verb.

    Raises:
        ConfigError: several processes, or nothing that can be kept; a cache to clear that there is not.
        DataError: what is to be removed cannot be.
    """
    own, others = flags().parse_known_args(rest)
    if own.list or own.clear:
        if others:
            raise ConfigError(f"vlm-lora cache --list and --clear stand alone, and {others[0]} is for a run.")
        _clear(own.clear or ())
        _list()
        return
    refuse_several("cache", os.environ)
    run = configure(others, {"do_train": True, "do_eval": True}, verb="cache", needed=(MODEL, DATA))
    if run.dry_run_options.dry_run:
        raise ConfigError("--dry_run is for train: it shows the rows that would be trained on. Leave it out.")
    from vlm_lora import pipeline

    kept = pipeline.cache(run)
    print(f"{counted(kept.rows, 'row')} with {counted(kept.images, 'image')}.")
    if kept.made is not None:
        print(f"Vision features: {kept.made} made, {kept.read} there already.")
    for name, size in kept.after.items():
        print(f"{name}: {spell(kept.before[name])} before, {spell(size)} now.")


def _clear(names: Sequence[str]) -> None:
    for name in names:
        if name != "all" and name not in CACHES:
            known = ("all", *CACHES)
            raise ConfigError(f"--clear {name}: no such cache; there are {', '.join(known)}.{nearest(name, known)}")
    for name in CACHES if "all" in names else dict.fromkeys(names):
        print(f"{name}: {spell(clear(name))} removed.")


def _list() -> None:
    for name, kind in CACHES.items():
        files = kept_files(name)
        size = sum(file.stat().st_size for file in files)
        print(f"{name:<16} {len(files):>7} files {spell(size):>12}  {cache_place(name)}: {kind.holds}")


def spell(size: int) -> str:
    """Write bytes in the largest unit that leaves a number above one."""
    for unit, factor in UNITS:
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} bytes"
