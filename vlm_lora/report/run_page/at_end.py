"""The page that a run writes itself when it ends, however it ends."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_lora.config.run_config import RunConfig
from vlm_lora.errors import ConfigError
from vlm_lora.report.run_page.drawing import NEEDS, can_draw
from vlm_lora.report.run_page.folder import holds_run
from vlm_lora.report.run_page.page import PAGE, Ending, refuse_other_files, write_run_page
from vlm_lora.training.checkpoints.run_record import note_file
from vlm_lora.training.observers import EndReason, RunObserver

logger = logging.getLogger(__name__)


class RunPage(RunObserver):
    """Writes `report.html` at the end, on the first process alone. A page that cannot be made ends no run."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._images = True
        self._log: list[Mapping[str, Any]] = []

    def started(self, run: RunConfig, arguments: Any) -> None:
        """Note where the page goes."""
        if run.reporting.report_page and arguments.process_index == 0:
            self._folder, self._images = Path(arguments.output_dir), run.reporting.report_images

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """Keep what is logged: a run that fails has not written it."""
        self._log.append({**figures, "step": step})

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        """Keep it, too."""
        self._log.append({**figures, "step": step})

    def ended(self, reason: EndReason, said: str) -> None:
        """Write the page, or say why there is none and how to make it later."""
        folder = self._folder
        if folder is None or not folder.is_dir() or not (self._log or holds_run(folder)):
            return
        later = f"vlm-lora report {folder}"
        if not can_draw():
            logger.info("To see this run on a page: %s, then %s", NEEDS, later)
            return
        page = folder / PAGE
        try:
            refuse_other_files(page)
            write_own_page(folder, page, images=self._images, ending=_ending(reason, said), more=self._log)
        except Exception as error:  # the run itself is done, and its results are written
            logger.warning(
                "%s could not be written (%s: %s). To try again: %s", page, type(error).__name__, error, later
            )
            return
        logger.info("The run on a page: %s", page)


def write_own_page(
    folder: Path,
    output: Path,
    *,
    images: bool,
    ending: Ending | None = None,
    more: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a run's page; in the run's own folder it is put on record there as the run's.

    Raises:
        ConfigError: as `write_run_page`.
    """
    write_run_page(folder, output, images=images, ending=ending, more=more)
    if output.name == PAGE and output.resolve().parent == folder.resolve():
        try:
            note_file(folder, PAGE)
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written: {error.strerror}.") from error


def _ending(reason: EndReason, said: str) -> Ending | None:
    """Return how the run ended, where its files do not say it."""
    first = next(iter(said.strip().splitlines()), "")
    if reason is EndReason.ERROR:
        return Ending(good=False, said="interrupted" if first == KeyboardInterrupt.__name__ else f"failed: {first}")
    good = reason in (EndReason.NOTHING_LEFT, EndReason.STOPPED_EARLY)
    return None if reason is EndReason.FINISHED else Ending(good=good, said=first)
