"""`vlm-lora cache`: prepare images and take a frozen vision tower's features, ahead of the run that reads them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vlm_lora.cli.setup import configure
from vlm_lora.config.early import DATA, MODEL
from vlm_lora.errors import ConfigError
from vlm_lora.launch.placement import refuse_several

UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def cache(rest: Sequence[str]) -> None:
    """Run the verb.

    Raises:
        ConfigError: several processes, or nothing that can be kept.
    """
    refuse_several("cache", os.environ)
    run = configure(rest, {"do_train": True, "do_eval": True}, verb="cache", needed=(MODEL, DATA))
    if run.dry_run_options.dry_run:
        raise ConfigError("--dry_run is for train: it shows the rows that would be trained on. Leave it out.")
    from vlm_lora import pipeline

    kept = pipeline.cache(run)
    print(f"{kept.rows} rows with {kept.images} images.")
    if kept.made is not None:
        print(f"Vision features: {kept.made} made, {kept.read} there already.")
    for name, size in kept.after.items():
        print(f"{name}: {spell(kept.before[name])} before, {spell(size)} now.")


def spell(size: int) -> str:
    """Write bytes in the largest unit that leaves a number above one."""
    for unit, factor in UNITS:
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} bytes"
