"""Shows a run while it goes on: on a terminal one live line and a table, elsewhere plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from vlm_lora.config.run_config import RunConfig
from vlm_lora.progress import Line, live_line
from vlm_lora.report.terminal.evaluations import EvaluationTable, plain_evaluation, scores_of
from vlm_lora.report.terminal.pace import Pace
from vlm_lora.report.terminal.start import beginning_lines, data_lines, title
from vlm_lora.report.terminal.steps import live_words, plain_words
from vlm_lora.report.terminal.summary import Seen, closing_lines
from vlm_lora.training.observers import Advance, Beginning, CheckedData, EndReason, RunObserver


class TerminalView(RunObserver):
    """Tells of a run on stderr: what it is, each step, each evaluation, and its end.

    Processes but the first say nothing. `--disable_tqdm true` leaves plain lines; `--log_level error` nothing at all.

    Args:
        line: the terminal's live line; by default that of the process, if it has one.
        quiet: say nothing.
        clock: returns seconds.
    """

    shows_progress = True

    def __init__(
        self, *, line: Line | None = None, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._line = line or live_line()
        self._quiet = quiet
        self._clock = clock
        self._pace = Pace(clock)
        self._table = EvaluationTable()
        self._seen = Seen()
        self._run: RunConfig | None = None
        self._arguments: Any = None
        self._advance: Advance | None = None
        self._figures: Mapping[str, float] = {}
        self._fresh_loss: float | None = None
        """The training loss, where one was logged since the last evaluation."""
        self._doing = ""
        self._trains = False

    def started(self, run: RunConfig, arguments: Any) -> None:
        """Say what is done with which model and data."""
        self._run, self._arguments = run, arguments
        self._quiet = self._quiet or arguments.process_index != 0
        if arguments.disable_tqdm:
            self._line = None
        verb = "Training" if arguments.do_train else "Evaluating"
        model, data = run.model.model_name_or_path, run.data.dataset_name or run.data.validation_name
        self._say(title(verb, str(model), str(data), self._columns()))

    def data_read(self, checked: CheckedData | None) -> None:
        """Say what the rows are."""
        self._say(data_lines(checked, self._columns()))

    def begins(self, beginning: Beginning) -> None:
        """Say what the training is, and show the live line."""
        assert self._run is not None  # `started` comes first
        tuning = self._run.tuning
        tuned = f"LoRA of rank {tuning.lora_rank}" if tuning.peft_method == "lora" else "full weights"
        self._say(beginning_lines(beginning, tuned, self._columns()))
        self._advance = Advance(step=beginning.step, steps=beginning.steps, rows=0, tokens=0)
        self._trains = True
        if self._line is not None and not self._quiet:
            self._line.put(self._words)

    def advanced(self, advance: Advance) -> None:
        """Show a step."""
        self._advance, self._doing = advance, ""
        self._pace.step(advance)
        self._refresh()

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """Show the figures of a step."""
        self._figures, self._fresh_loss = figures, figures.get("loss")
        if self._line is None and self._advance is not None:
            self._say([plain_words(step, self._advance.steps, figures, self._pace.rates())])
        self._refresh()

    def measuring(self, done: int, total: int | None) -> None:
        """Show how far an evaluation is."""
        self._pace.pause()
        self._doing = f"evaluating batch {done:,}" + ("" if total is None else f" of {total:,}")
        if not self._trains and done == 1 and self._line is not None and not self._quiet:
            self._line.put(self._measuring)
        self._refresh()

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        """Add a row to the table of evaluations; one outside a training is told by the summary."""
        self._doing = ""
        if not self._trains:
            self._drop(self._measuring)
            return
        self._seen.evaluations[step] = scores_of(figures)
        if self._line is None:
            self._say([plain_evaluation(f"step {step}", figures)])
        else:
            self._say(self._table.lines(f"{step:,}", self._fresh_loss, figures, self._columns()))
        self._fresh_loss = None

    def saved(self, step: int, folder: Path) -> None:
        """Remember a checkpoint."""
        self._seen.saved[step] = folder

    def trained(self) -> None:
        """Take the live line away."""
        self._trains = False
        self._drop(self._words)

    def ended(self, reason: EndReason, said: str) -> None:
        """Take whatever is live away."""
        self._trains = False
        self._seen.seconds = self._pace.seconds()
        self._seen.stopped = said if reason is EndReason.STOPPED_EARLY else ""
        self._drop(self._words)
        self._drop(self._measuring)

    def close(self, results: Mapping[str, Any]) -> None:
        """Say how the run ended, in words."""
        if self._run is not None:
            self._say(closing_lines(self._run, self._arguments, results, self._seen, self._columns()))

    def _columns(self) -> int:
        return 0 if self._line is None else max(self._line.columns() - 1, 20)

    def _words(self, columns: int) -> str:
        assert self._advance is not None  # put once it is there
        return live_words(self._advance, self._figures, self._pace.rates(), self._doing, columns)

    def _measuring(self, columns: int) -> str:
        return self._doing[:1].upper() + self._doing[1:]

    def _refresh(self) -> None:
        if self._line is not None and not self._quiet:
            self._line.refresh()

    def _drop(self, text: Callable[[int], str]) -> None:
        if self._line is not None:
            self._line.drop(text)

    def _say(self, lines: Iterable[str]) -> None:
        if not self._quiet:
            sys.stderr.write("".join(f"{line}\n" for line in lines))
            sys.stderr.flush()
