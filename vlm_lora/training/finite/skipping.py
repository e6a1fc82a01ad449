"""Steps of which no update is made (`--on_nonfinite skip_step`): how many, and averages over those that were made."""

from __future__ import annotations

from typing import Any

from vlm_lora.compat import IS_5

SKIPPED, OVERFLOWS = "skipped_steps", "overflow_steps"
"""Names in the log, and with `train_` before them in the results."""
_IN_A_ROW = "skipped_in_a_row"


class SkippedSteps:
    """Counts the steps without an update, in the trainer's state too, so that a resumed run counts on.

    Steps whose loss or gradient was not finite are one count. Those that a scale of the loss in fp16 leaves out are
    another: they are its way to find the scale, their losses are fine, and it is their limit.
    """

    def __init__(self) -> None:
        self.limit: int | None = None
        """`--nonfinite_limit`: most steps that are skipped in a row; None where the first one ends the run."""
        self.now = False
        """Whether the update of the step under way is not made."""
        self.total = 0
        self.in_a_row = 0
        self.overflows = 0
        self.begun = 0
        """The step that this process's run goes on from."""
        self._logged_at = 0
        self._last = 0
        self.here = 0
        """Of them in this process's run; the others were before it."""
        self._window = 0
        """Of them since the last log of a loss."""
        self._left = 0.0
        """What they added to the sum of the losses since then: the mean of the ranks."""
        self._left_before = 0.0
        """The same before that log."""

    def begin(self, state: Any) -> None:
        """Count on from what a checkpoint has counted, if the run goes on from one."""
        kept = state.stateful_callbacks.get(SKIPPED) or {}
        self.total, self.in_a_row = int(kept.get(SKIPPED, 0)), int(kept.get(_IN_A_ROW, 0))
        self.overflows = int(kept.get(OVERFLOWS, 0))
        self.begun = self._logged_at = state.global_step
        self._last, self.here, self._window, self._left, self._left_before = 0, 0, 0, 0.0, 0.0
        self.now = False

    def skip(self, state: Any, *, mean: float) -> None:
        """Count the step under way.

        Args:
            state: the trainer's.
            mean: what the step has added to the sum of the losses, as the mean of the ranks.
        """
        self.now = True
        self.total += 1
        self.in_a_row += 1
        self.here += 1
        self._window += 1
        self._last = state.global_step + 1
        self._left += mean
        self._keep(state)

    def overflow(self, state: Any) -> None:
        """Count a step that fp16's scale of the loss left out."""
        self.overflows += 1
        self._keep(state)

    def step_ends(self, state: Any) -> None:
        """Take note that a step is over; one that was made ends a row of skipped ones."""
        if not self.now and self.in_a_row:
            self.in_a_row = 0
            self._keep(state)
        self.now = False

    def correct(self, logs: dict[str, Any], step: int) -> None:
        """Make averages those of the steps that were made, and leave out what a skipped step has none of.

        Args:
            logs: what is to be logged after a step, or at the end of the training.
            step: how many steps there are, the skipped ones among them.
        """
        if "loss" in logs:
            self._correct_loss(logs, step)
        elif "train_loss" in logs and self.here:
            steps, left = step - self.begun, self.left
            made = steps - self.here
            mean = logs["train_loss"] - left / (steps if IS_5 else step)
            logs["train_loss"] = mean * steps / made if made else float("nan")

    @property
    def left(self) -> float:
        """What skipped steps have added to the sum of the losses since this training began: the mean of the ranks."""
        return self._left_before + self._left

    def figures(self) -> dict[str, int]:
        """Return the counts for the results: of skipped steps where they may be, of overflows where there were any."""
        found = {f"train_{SKIPPED}": self.total} if self.limit is not None or self.total else {}
        return found | ({f"train_{OVERFLOWS}": self.overflows} if self.overflows else {})

    def _correct_loss(self, logs: dict[str, Any], step: int) -> None:
        steps = step - self._logged_at
        made = steps - self._window
        if not made:
            del logs["loss"]
        elif self._window:
            logs["loss"] = (logs["loss"] * steps - self._left) / made
        if self._last == step:
            logs.pop("grad_norm", None)
        if self.total:
            logs[SKIPPED] = self.total
        if self.overflows:
            logs[OVERFLOWS] = self.overflows
        self._logged_at, self._window = step, 0
        self._left_before, self._left = self.left, 0.0

    def _keep(self, state: Any) -> None:
        # No entry where nothing was skipped: such a run's state is what it ever was.
        state.stateful_callbacks[SKIPPED] = {
            SKIPPED: self.total,
            _IN_A_ROW: self.in_a_row,
            OVERFLOWS: self.overflows,
        }
