"""Who is told what happens in a run, and when: a log today, a terminal, a page of the run or a tracker later.

Moments come in this order, on every process:

1. `started`: the configuration is checked.
2. `data_read`: every row was read, or rows are not checked.
3. `step`, `evaluated`, `saved`: as often as the run's settings say.
4. `ended`, once, with the reason.

Observers watch. What changes or stops a run is a callback of its trainer, not an observer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from vlm_lora.config.run_config import RunConfig
from vlm_lora.errors import EndedEarlyError

logger = logging.getLogger(__name__)


class EndReason(Enum):
    """Why a run ended."""

    FINISHED = "finished"
    NOTHING_LEFT = "nothing left to train"
    SIGNAL = "saved and ended on a signal"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True)
class CheckedData:
    """What the check found in the rows."""

    report: Mapping[str, Any]
    """The content of `data_report.json`."""
    path: Path
    """Where that lies."""
    rows: int
    bad: int
    """Rows that are bad; those that `--on_overflow drop` leaves out are not."""


class RunObserver:
    """Is told of each moment of a run; override those that matter. Figures are by the names that the log has."""

    def started(self, run: RunConfig, arguments: Any) -> None:
        """Take note that a run begins, with its resolved configuration and the training arguments."""

    def data_read(self, checked: CheckedData | None) -> None:
        """Take note of what was found in the rows; None with `--skip_check`."""

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """Take note of a step whose figures are logged (`--logging_steps`)."""

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        """Take note of an evaluation."""

    def saved(self, step: int, folder: Path) -> None:
        """Take note of a checkpoint that is written whole."""

    def ended(self, reason: EndReason, said: str) -> None:
        """Take note of the end; `said` is one sentence, empty where the run just finished."""


class RunLog(RunObserver):
    """Writes the run's log lines."""

    def data_read(self, checked: CheckedData | None) -> None:
        """Say how many rows there are, and what in them should be known."""
        if checked is None:
            return
        logger.info("Checked %d rows: %d bad. %s says what they are.", checked.rows, checked.bad, checked.path)
        for name, split in checked.report["splits"].items():
            if split["unanswered"]:
                logger.info(
                    "%s: %d rows have an empty answer, which the model learns to give.", name, split["unanswered"]
                )
        leaked = checked.report["leaked"]
        if leaked:
            logger.warning("%d validation rows are also trained on; %s names the first.", leaked, checked.path)


class Observers(RunObserver):
    """Tells several observers, in order."""

    def __init__(self, observers: Sequence[RunObserver]) -> None:
        self._observers = tuple(observers)
        self._reason, self._said = EndReason.FINISHED, ""

    def started(self, run: RunConfig, arguments: Any) -> None:
        """Tell all."""
        for each in self._observers:
            each.started(run, arguments)

    def data_read(self, checked: CheckedData | None) -> None:
        """Tell all."""
        for each in self._observers:
            each.data_read(checked)

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """Tell all."""
        for each in self._observers:
            each.step(step, figures)

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        """Tell all."""
        for each in self._observers:
            each.evaluated(step, figures)

    def saved(self, step: int, folder: Path) -> None:
        """Tell all."""
        for each in self._observers:
            each.saved(step, folder)

    def note_reason(self, reason: EndReason, said: str) -> None:
        """Note why the run will end, if nothing else ends it."""
        self._reason, self._said = reason, said

    def ended(self, reason: EndReason, said: str) -> None:
        """Tell all."""
        for each in self._observers:
            each.ended(reason, said)

    @contextmanager
    def until_end(self) -> Iterator[None]:
        """Tell how the run inside ended, whatever ends it."""
        try:
            yield
        except EndedEarlyError as early:
            self.ended(EndReason.SIGNAL, str(early))
            raise
        except BaseException as error:
            self.ended(EndReason.ERROR, str(error) or type(error).__name__)
            raise
        self.ended(self._reason, self._said)
