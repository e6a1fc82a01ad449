"""How large images are shown to the model: `--min_pixels`, `--max_pixels` and `--image_size` in the processor's words.

They are set in the processor's own settings and saved with it, so that serving and `ask` show images as training did.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_lora.compat import change_settings
from vlm_lora.config.run_config import ModelConfig
from vlm_lora.errors import ConfigError
from vlm_lora.model.processor.image_scaling import SCALINGS, ImpossibleError, Scaling, Settings

logger = logging.getLogger(__name__)

FLAGS = ("min_pixels", "max_pixels", "image_size")
"""The settings that say how large images are shown."""

OF_A_RUN = ("run_files.json", "run.json", "run_settings.json")
"""Files next to a processor that a run of this program saved: it was trained with that processor's size."""

_PINPOINTS = "image_grid_pinpoints"


def scaling_of(processor: Any) -> Scaling | None:
    """Return how a processor scales images; None for one that is not in the table."""
    name = type(processor.image_processor).__name__
    found = next((scaling for start, scaling in SCALINGS.items() if name.startswith(start)), None)
    # Code that a model folder brings along may have the class's name and other settings.
    return found if found is not None and None not in _read(processor, found).values() else None


def describe_size(processor: Any) -> str:
    """Say in words how large images are shown, with the settings that say so.

    >>> describe_size(processor)  # doctest: +SKIP
    'scaled to 3136 to 1003520 pixels (Qwen2VLImageProcessor: size {shortest_edge: 3136, longest_edge: 1003520})'
    """
    name = type(processor.image_processor).__name__
    scaling = scaling_of(processor)
    if scaling is None:
        size = _plain(getattr(processor.image_processor, "size", None))
        return f"as {name} has it, size {_spell(size) or 'of its own'}"
    settings = _read(processor, scaling)
    shown = ", ".join(f"{key} {_spell(settings[key])}" for key in scaling.told if settings.get(key) is not None)
    return f"{scaling.words(settings)} ({name}{': ' if shown else ''}{shown})"


def set_image_size(processor: Any, config: ModelConfig, *, trained: str | None, longest: int | None = None) -> None:
    """Give a processor the size that was asked for.

    Args:
        processor: changed in place.
        config: `min_pixels`, `max_pixels` and `image_size`; None leaves the processor's own.
        trained: the folder that it was loaded from, where a run had trained with the processor's own size; else None.
        longest: the longest side in pixels that the model's vision tower has positions for, where it is known.

    Raises:
        ConfigError: the processor has no such setting, or none that keeps to the numbers.
    """
    _note_variables(config)
    wanted = {flag: getattr(config, flag) for flag in FLAGS if getattr(config, flag) is not None}
    if not wanted:
        return
    given = " ".join(f"--{flag} {value}" for flag, value in wanted.items())
    if {"max_pixels", "image_size"} <= set(wanted):
        raise ConfigError(f"{given}: both say how large images are shown at most. Type one of them.")
    scaling, before = scaling_of(processor), describe_size(processor)
    if scaling is None:
        raise ConfigError(
            f"{given}: how this model's images are scaled is not known here; they are shown {before}. Leave it out; "
            "the size stands in the model's preprocessor_config.json."
        )
    settings: Settings = {**_read(processor, scaling), "longest": longest, "step": _step(processor)}
    try:
        changed = dict(settings)
        for flag, value in wanted.items():
            changed |= scaling.change(flag, changed, value)
        scaling.check(changed, processor.tokenizer.get_vocab())
    except ImpossibleError as error:
        raise ConfigError(f"{given}: {error}. This model's images are shown {before}.") from error
    _write(processor, scaling, {key: changed[key] for key in scaling.keys if changed[key] != settings[key]})
    after = describe_size(processor)
    if trained is not None and after != before:
        logger.warning("%s: images are shown %s; %s was trained with images %s.", given, after, trained, before)


def _note_variables(config: ModelConfig) -> None:
    """Say that what qwen-vl-utils and ms-swift read from the environment is not read here."""
    for flag in ("min_pixels", "max_pixels"):
        value = os.environ.get(flag.upper())
        if value and getattr(config, flag) is None:
            logger.warning("The environment variable %s is not read here. Type --%s %s.", flag.upper(), flag, value)


def trained_here(folder: Path) -> bool:
    """Say whether a run of this program saved what a folder holds."""
    return any((folder / name).is_file() for name in OF_A_RUN)


def match_config(config: Any, processor: Any) -> None:
    """Let a model cut images as its processor did: LLaVA-NeXT's families have the sizes in both configurations.

    The model finds out anew which of them each image was brought to. A saved adapter has no configuration of the
    model: whoever loads one elsewhere sets the base model's to the processor's.

    Args:
        config: the model's configuration; changed in place.
        processor: the model's processor.
    """
    if _copy_sizes(config, processor):
        logger.info(
            "The model's image_grid_pinpoints are set to the processor's: %s. Another program that loads the adapter "
            "has to do the same with its base model's configuration.",
            _spell(_plain(processor.image_processor.image_grid_pinpoints)),
        )


def match_model(model: Any, processor: Any) -> None:
    """As `match_config`, for a loaded model, whose modules may have configurations of their own."""
    for part in model.modules():
        _copy_sizes(getattr(part, "config", None), processor)


def _copy_sizes(config: Any, processor: Any) -> bool:
    """Copy a processor's sizes to a configuration that has them too; say whether they differed."""
    own, wanted = getattr(config, _PINPOINTS, None), getattr(processor.image_processor, _PINPOINTS, None)
    if own is None or wanted is None or _plain(own) == _plain(wanted):
        return False
    setattr(config, _PINPOINTS, [list(size) for size in wanted])
    return True


def _read(processor: Any, scaling: Scaling) -> Settings:
    """Return the settings that decide, as plain values; None for one that the processor has not."""
    images, kept = processor.image_processor, processor.tokenizer.init_kwargs if scaling.in_tokenizer else {}
    values = {key: _plain(kept.get(key, getattr(images, key, None))) for key in (*scaling.keys, *scaling.fixed)}
    return {key: scaling.defaults.get(key) if value is None else value for key, value in values.items()}


def _step(processor: Any) -> int:
    """Return the side in pixels of what becomes one token, where the processor itself knows it."""
    return int(getattr(processor, "patch_size", None) or 1) * int(getattr(processor, "spatial_merge_size", None) or 1)


def _write(processor: Any, scaling: Scaling, changed: Mapping[str, Any]) -> None:
    change_settings(processor.image_processor, changed)
    if scaling.in_tokenizer:
        processor.tokenizer.init_kwargs.update(changed)


def _plain(value: Any) -> Any:
    """Return a setting as JSON has it: sizes are classes of their own in transformers 5, with a None for each key."""
    if isinstance(value, Mapping) or hasattr(value, "longest_edge"):
        return {key: item for key, item in dict(value).items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _spell(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {item}" for key, item in value.items()) + "}"
    return "" if value is None else str(value)
