"""How a trained model counts boxes: as its training did, whatever its family's makers do."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm_lora.config.files import read_mapping
from vlm_lora.config.run_config import ModelConfig, RunConfig

logger = logging.getLogger(__name__)

RECORDS = ("run_config.yaml", "run.json", "run_settings.json")
"""What training writes next to its weights and into each checkpoint; the last one earlier versions wrote there."""

BEFORE = "pixels"
"""What training did before it could be chosen."""


def with_trained_boxes(run: RunConfig) -> RunConfig:
    """Return the run with `--box_coordinates auto` settled by the training of its model, where it has one here.

    Another choice than that training's is kept, with a warning.
    """
    trained = trained_coordinates(run.model)
    given = run.data.box_coordinates
    if trained is None or trained == given:
        return run
    if given == "auto":
        logger.info("Boxes are counted as in the training of %s: %s.", run.model.model_name_or_path, trained)
        return replace(run, data=replace(run.data, box_coordinates=trained))
    logger.warning(
        "--box_coordinates %s: %s was trained with %s. Boxes that it writes are read as %s all the same.",
        given,
        run.model.model_name_or_path,
        trained,
        given,
    )
    return run


def trained_coordinates(model: ModelConfig) -> str | None:
    """Return the `box_coordinates` of the training that made a model or adapter folder; None where nothing says so."""
    settings = trained_settings(model)
    if settings is None:
        return None
    found = settings.get("box_coordinates", BEFORE)
    return found if isinstance(found, str) else BEFORE


def trained_settings(model: ModelConfig) -> Mapping[str, Any] | None:
    """Return the settings of the training that made a model or adapter folder; None where it has no record of one."""
    if model.model_name_or_path is None:
        return None
    folder = Path(model.model_name_or_path).expanduser()
    record = next((folder / name for name in RECORDS if (folder / name).is_file()), None)
    if record is None:
        return None
    content = read_mapping(record)
    settings: Mapping[str, Any] = content.get("settings", content) if record.suffix == ".json" else content
    return settings
