"""Who is told what happens in a run, and when: its log, a terminal, a page of the run.

Moments come in this order, on every process:

1. `started`: the configuration is checked.
2. `data_read`: every row was read, or rows are not checked.
3. `begins`: model, optimizer and schedule are there, and the first step is next; not in a run that only evaluates.
4. `advanced` after each step, `measuring` after each batch of an evaluation; `step`, `evaluated`, `saved` as often as
   the run's settings say.
5. `trained`: no further step is made; an evaluation may follow.
6. `ended`, once, with the reason.

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
from vlm_lora.data.wording import counted
from vlm_lora.errors import EndedEarlyError, SignalledError

logger = logging.getLogger(__name__)


class EndReason(Enum):
    """Why a run ended."""

    FINISHED = "finished"
    STOPPED_EARLY = "stopped early"
    NOTHING_LEFT = "nothing left to train"
    SIGNAL = "ended on a signal"
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


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """What a training is, known once all of it is put together."""

    device: str
    precision: str
    """What is computed in, and what weights are stored in."""
    trainable: int
    """Parameters; those of the whole model are `parameters`."""
    parameters: int
    processes: int
    step: int
    """Steps that the checkpoint has made which the run goes on from; 0 for a fresh start."""
    steps: int
    """The step that it ends at."""
    epochs: float | None
    """None for a stream."""
    rows_a_step: int
    """Rows of all processes, or packs where the run packs."""
    unit: str
    """What a batch is counted in: `rows` or `packs`."""
    evaluates: str
    """When, in words: `every 10 steps`."""
    saves: str


@dataclass(frozen=True, kw_only=True)
class Advance:
    """How far a training has come."""

    step: int
    steps: int
    rows: int
    """Rows that all processes have trained on in this run, reckoned from those of this one."""
    tokens: int
    """Tokens without padding, likewise."""


class RunObserver:
    """Is told of each moment of a run; override those that matter. Figures are by the names that the log has."""

    shows_progress = False
    """Whether it shows how far the run has come, so that nothing else need."""

    def started(self, run: RunConfig, arguments: Any) -> None:
        """Take note that a run begins, with its resolved configuration and the training arguments."""

    def data_read(self, checked: CheckedData | None) -> None:
        """Take note of what was found in the rows; None with `--skip_check`."""

    def begins(self, beginning: Beginning) -> None:
        """Take note that the first step is next."""

    def advanced(self, advance: Advance) -> None:
        """Take note of a step."""

    def measuring(self, done: int, total: int | None) -> None:
        """Take note of a batch of an evaluation: how many there were, and how many there will be, if that is known."""

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """Take note of a step whose figures are logged (`--logging_steps`)."""

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        """Take note of an evaluation."""

    def saved(self, step: int, folder: Path) -> None:
        """Take note of a checkpoint that is written whole."""

    def trained(self) -> None:
        """Take note that no further step is made."""

    def ended(self, reason: EndReason, said: str) -> None:
        """Take note of the end; `said` is one sentence, empty where the run just finished."""

    def broken_off(self, said: str) -> None:
        """Take note, in another thread than all else, that the process is about to be ended by force, and why."""


class RunLog(RunObserver):
    """Writes the run's log lines."""

    def data_read(self, checked: CheckedData | None) -> None:
        """Say how many rows there are, and what in them should be known."""
        if checked is None:
            return
        rows = counted(checked.rows, "row")
        logger.info("Checked %s: %d bad. %s says what they are.", rows, checked.bad, checked.path)
        for name, split in checked.report["splits"].items():
            if split["unanswered"]:
                logger.info(
                    "%s: %s an empty answer, which the model learns to give.",
                    name,
                    counted(split["unanswered"], "row has", "rows have"),
                )
        leaked = checked.report["leaked"]
        if leaked:
            said = counted(leaked, "validation row is", "validation rows are")
            logger.warning("%s also trained on; %s names the first.", said, checked.path)


class Observers(RunObserver):
    """Tells several observers, in order."""

    def __init__(self, observers: Sequence[RunObserver]) -> None:
        self._observers = tuple(observers)
        self._reason, self._said = EndReason.FINISHED, ""
        self.shows_progress = any(each.shows_progress for each in observers)

    def started(self, run: RunConfig, arguments: Any) -> None:
        """Tell all."""
        for each in self._observers:
            each.started(run, arguments)

    def data_read(self, checked: CheckedData | None) -> None:
        """Tell all."""
        for each in self._observers:
            each.data_read(checked)

    def begins(self, beginning: Beginning) -> None:
        """Tell all."""
        for each in self._observers:
            each.begins(beginning)

    def advanced(self, advance: Advance) -> None:
        """Tell all."""
        for each in self._observers:
            each.advanced(advance)

    def measuring(self, done: int, total: int | None) -> None:
        """Tell all."""
        for each in self._observers:
            each.measuring(done, total)

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

    def trained(self) -> None:
        """Tell all."""
        for each in self._observers:
            each.trained()

    def note_reason(self, reason: EndReason, said: str) -> None:
        """Note why the run will end, if nothing else ends it."""
        self._reason, self._said = reason, said

    def ended(self, reason: EndReason, said: str) -> None:
        """Tell all."""
        for each in self._observers:
            each.ended(reason, said)

    def broken_off(self, said: str) -> None:
        """Tell all."""
        for each in self._observers:
            each.broken_off(said)

    @contextmanager
    def until_end(self) -> Iterator[None]:
        """Tell how the run inside ended, whatever ends it."""
        try:
            yield
        except (EndedEarlyError, SignalledError) as early:
            self.ended(EndReason.SIGNAL, str(early))
            raise
        except BaseException as error:
            self.ended(EndReason.ERROR, str(error) or type(error).__name__)
            raise
        self.ended(self._reason, self._said)
