"""What becomes of a run's folder once the run is over: registered, pushed; whether it is taken is tried first."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from vlm_lora.config.run_config import RunConfig
from vlm_lora.deploy.push import upload
from vlm_lora.deploy.registry.register import register
from vlm_lora.deploy.registry.said import in_words
from vlm_lora.deploy.registry.store import open_store
from vlm_lora.errors import Refusals
from vlm_lora.training.hub import check_push, repository_of
from vlm_lora.training.meeting import agreeing

logger = logging.getLogger(__name__)


class Handover:
    """What one run hands over, on its first process alone."""

    def __init__(self) -> None:
        self._arguments: Any = None
        self._repository: str | None = None
        self._name: str | None = None
        self._store: str | None = None

    def check(self, run: RunConfig, arguments: Any) -> None:
        """Find out whether the folder will be taken, before anything is read; all processes call it.

        Raises:
            ConfigError: as `check_push`, or MLflow's store does not answer.
        """
        self._arguments, self._repository = arguments, check_push(arguments)
        if run.output_model_name is not None and arguments.do_train:
            asked_by, store = _asked_by(run.output_model_name), run.tracking_uri
            agreeing(arguments, lambda: open_store(store, asked_by) if arguments.process_index == 0 else None)
            self._name, self._store = run.output_model_name, store

    def carry_out(self) -> None:
        """Hand the folder over. The run has ended by now, and what it made is on the disk.

        Raises:
            ConfigError: Hub or store do not take it; says that nothing is lost, and how to hand it over later.
        """
        if self._arguments.process_index != 0:
            return
        refused = Refusals()
        for hand_over in (self._register, self._push):
            with refused.noting():
                hand_over()
        refused.raise_any()

    def _register(self) -> None:
        if self._name is None:
            return
        folder = Path(self._arguments.output_dir)
        found = register(folder, self._name, self._store, asked_by=_asked_by(self._name))
        logger.warning("%s", in_words(found))

    def _push(self) -> None:
        if self._repository is None:
            return
        repository = repository_of(self._arguments)
        pushed = upload(Path(self._arguments.output_dir), repository, self._repository)
        logger.warning("Pushed %d files (%s bytes) to %s", len(pushed.files), f"{pushed.size:,}", pushed.url)


def _asked_by(name: str) -> str:
    return f"--output_model_name {name}"
