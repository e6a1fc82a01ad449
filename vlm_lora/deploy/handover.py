"""What becomes of a run's folder once the run is over: it is pushed; whether it will be taken is tried first."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from vlm_lora.deploy.push import upload
from vlm_lora.training.hub import check_push, repository_of

logger = logging.getLogger(__name__)


class Handover:
    """What one run hands over, on its first process alone."""

    def __init__(self) -> None:
        self._arguments: Any = None
        self._repository: str | None = None

    def check(self, arguments: Any) -> None:
        """Find out whether the folder will be taken, before anything is read; all processes call it.

        Raises:
            ConfigError: as `check_push`.
        """
        self._arguments, self._repository = arguments, check_push(arguments)

    def carry_out(self) -> None:
        """Hand the folder over. The run has ended by now, and what it made is on the disk.

        Raises:
            ConfigError: the Hub does not take it; says that nothing is lost, and how to push it later.
        """
        if self._repository is None:
            return
        repository = repository_of(self._arguments)
        pushed = upload(Path(self._arguments.output_dir), repository, self._repository)
        logger.warning("Pushed %d files (%s bytes) to %s", len(pushed.files), f"{pushed.size:,}", pushed.url)
