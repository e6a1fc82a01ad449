"""Which implementation prepares images: `--image_backend auto`, settled by a training's record or by the family."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from vlm_lora.compat import has_torchvision
from vlm_lora.config.run_config import ModelConfig
from vlm_lora.errors import ConfigError
from vlm_lora.model.families import FAMILIES, family_of
from vlm_lora.model.processor.trained_boxes import trained_settings

logger = logging.getLogger(__name__)

BEFORE = "pil"
"""What training did before it chose by family."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An image backend, and why it is that one."""

    backend: str
    """`pil` or `torchvision`."""
    why: str


def settle_backend(model: ModelConfig, loaded: Any, *, adapter: bool, checkpoint: str | None = None) -> ModelConfig:
    """Return the model's settings with an image backend that is settled, and say which and why.

    Args:
        model: `image_backend` as it was given.
        loaded: the model's configuration.
        adapter: whether `model_name_or_path` names an adapter.
        checkpoint: the backend of the checkpoint that training goes on from, where it does.

    Raises:
        ConfigError: torchvision is asked for, or was trained with, and is not installed.
    """
    given = model.image_backend
    trained = trained_backend(model, adapter=adapter)
    if given == "auto":
        choice = _choose(model, loaded, trained=trained, checkpoint=checkpoint)
        logger.info("Image backend: %s, %s (--image_backend auto).", choice.backend, choice.why)
    else:
        choice = Choice(backend=given, why="as --image_backend says")
        if trained not in (None, given):
            logger.warning(
                "--image_backend %s: %s was trained with %s, whose pixels differ by some gray levels.",
                given,
                model.model_name_or_path,
                trained,
            )
    if choice.backend == "torchvision" and not has_torchvision():
        raise ConfigError(
            f"--image_backend {given}: torchvision, {choice.why}, and it is not installed. Install it "
            "(pip install torchvision), or type --image_backend pil, whose pixels differ by some gray levels."
        )
    return replace(model, image_backend=choice.backend)


def trained_backend(model: ModelConfig, *, adapter: bool) -> str | None:
    """Return the image backend of the training that made a folder; None for a model that was not trained here.

    Args:
        model: names the folder.
        adapter: whether it holds an adapter. One without a record, or with that of an earlier version, had `pil`.
    """
    settings = trained_settings(model)
    if settings is None:
        return BEFORE if adapter else None
    found = settings.get("image_backend")
    return found if found in ("pil", "torchvision") else BEFORE


def _choose(model: ModelConfig, loaded: Any, *, trained: str | None, checkpoint: str | None) -> Choice:
    name = loaded.model_type
    if checkpoint is not None:
        return Choice(backend=checkpoint, why="as in the run of the checkpoint")
    if trained is not None:
        return Choice(backend=trained, why=f"as in the training of {model.model_name_or_path}")
    if name not in FAMILIES:
        return Choice(backend="pil", why=f"as torchvision's pixels were not compared for {name}")
    if family_of(loaded).image_backend == "pil":
        return Choice(
            backend="pil",
            why=f"as torchvision's pixels for {name} differ between versions of transformers, or were not compared",
        )
    if not has_torchvision():
        return Choice(backend="pil", why="as torchvision, which is faster, is not installed here")
    return Choice(
        backend="torchvision",
        why=f"which is faster and gives equal pixels for {name} in all supported versions of transformers",
    )
