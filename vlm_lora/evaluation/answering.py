"""Answers to validation rows and their scores, during training and after it.

1. The first process chooses the rows and deals them out (`dealing`): by length, each row to one process.
2. Each process generates its answers, batch by batch. Where weights are sharded, one that has no rows left takes part
   with a filler, because the others wait for its share of the weights.
3. The first process gets all answers over the process group, scores them, and tells all others the figures, so that
   every process decides alike what is best and when to stop.

Nothing of it is left in the model: see `vlm_lora.model.untouched`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import distributed

from vlm_lora.batching.ordering.rows import OrderedRows, Rows
from vlm_lora.data.conversation import Conversation, Text
from vlm_lora.errors import ConfigError
from vlm_lora.evaluation.dealing import Round, deal, spread
from vlm_lora.evaluation.generation import Answer, Answerer, Form, exact_match
from vlm_lora.evaluation.origins import origin_of, task_of
from vlm_lora.metrics.scored import Answered, Scores
from vlm_lora.metrics.scorer import Scorer
from vlm_lora.model.untouched import at_rest, same_randomness
from vlm_lora.progress import Progress

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of a run, and this one among them."""

    count: int = 1
    number: int = 0
    device: torch.device | None = None
    """Where what their group hands over lies; None for where torch thinks. Hardware's own group takes nothing else."""
    share_weights: bool = False
    """Whether each holds a part of the weights only, so that all must take part in each use of them."""

    def from_first(self, value: Value) -> Value:
        """Return what the first process gives."""
        return self._from(0, value)

    def from_each(self, value: Value) -> list[Value]:
        """Return what each process gives, in order."""
        # torch's own gather of objects takes no device, and guesses that of some hardware's group wrongly.
        return [self._from(number, value) for number in range(self.count)]

    def _from(self, number: int, value: Value) -> Value:
        if self.count == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=number, device=self.device)
        return box[0]


@dataclass(kw_only=True)
class ValidationAnswers:
    """Answers rows and scores the answers, as often as it is called."""

    answerer: Answerer
    rows: Rows
    scorer: Scorer
    batch_size: int
    """Rows answered at once on each process."""
    needed: str | None = None
    """The figure that the best checkpoint is chosen by; another measure than answers' scores is none of theirs."""
    samples: int = 0
    """How many rows are answered where not all are asked for; 0 for all."""
    groups: Sequence[Sequence[int]] = ()
    """Rows that may share a batch, where batch shapes are planned; none where any may."""
    processes: Processes = field(default_factory=Processes)
    shows_progress: bool = True
    before_round: Callable[[], object] = lambda: None
    """Called before each batch; what it raises ends the answering. Processes may have different numbers of batches."""
    answers: Sequence[Answer] = ()
    """Those of the last time, in the order of the rows; on the first process."""
    scores: Scores = field(default_factory=lambda: Scores(figures={}))
    """Those of the last time; on the first process."""
    _sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By row: what it is sorted by."""
    _forms: dict[int, Form] = field(default_factory=dict)
    """Of the batches of each group."""

    def __call__(self, model: Any, *, everything: bool) -> Mapping[str, float]:
        """Answer and score; every process must call it.

        Args:
            model: generates.
            everything: answer all rows instead of a sample of them.

        Returns:
            The figures by name, and `answers`, how many there are; the same on every process.
        """
        self.answerer.model = model
        with at_rest(model), same_randomness(model.device):
            self._warm_up()
            own = self._answer(everything=everything)
        gathered = self.processes.from_each(own)
        failure: Exception | None = None
        if self.processes.number == 0:
            found = {number: answer for part in gathered for number, answer in part.items()}
            self.answers = [found[number] for number in sorted(found)]
            try:
                self.scores = self.scorer.score([answered(answer) for answer in self.answers])
                self._check_needed()
            except Exception as error:  # the other processes must not wait for figures that never come
                failure = error
        figures, failure = self.processes.from_first(({**self.scores.figures, "answers": self.scores.count}, failure))
        if failure is not None:
            raise failure
        return figures

    def _check_needed(self) -> None:
        if self.needed in self.scorer.names and self.needed not in self.scores.figures:
            raise ConfigError(
                f"--metric_for_best_model {self.needed}: none of the {len(self.answers)} rows that are answered has "
                f"anything that it measures. Type more --eval_generate_samples (0 for all rows), or another metric."
            )

    @property
    def details(self) -> dict[str, Any]:
        """What results have beside the figures, after the last call: intervals, and the figures of groups of rows.

        On the first process, which writes them.
        """
        intervals = {f"eval_{name}_interval": list(ends) for name, ends in self.scores.intervals.items()}
        groups = {f"eval_by_{way}": figures for way, figures in self.scores.groups.items()}
        exact = exact_match(self.answers).figures if self.answers else {}
        return {**exact, **intervals, **groups}

    def _answer(self, *, everything: bool) -> dict[int, Answer]:
        dealt = None
        if self.processes.number == 0:
            dealt = self._deal(spread(len(self.rows), 0 if everything else self.samples))
        rounds = self.processes.from_first(dealt)
        assert rounds is not None  # the first process has dealt
        found: dict[int, Answer] = {}
        shown = self.shows_progress and self.processes.number == 0
        own = rounds[self.processes.number]
        with Progress("Answering", sum(len(turn.rows) for turn in own), self._unit, shown=shown) as progress:
            for turn in own:
                self.before_round()
                answers = self._answer_round(turn)
                if not turn.filler:
                    found |= answers
                progress.advance(len(turn.rows))
        return found

    @property
    def _unit(self) -> str:
        return "rows" if self.processes.count == 1 else "rows of this process"

    def _deal(self, rows: Sequence[int]) -> list[list[Round]]:
        in_order = isinstance(self.rows, OrderedRows) and self.rows.in_order
        return deal(
            rows,
            processes=self.processes.count,
            batch_size=self.batch_size,
            size_of=None if in_order else self._size,
            groups=self.groups,
            fills=self.processes.share_weights,
        )

    def _size(self, number: int) -> tuple[int, int]:
        """Return `size_of` a row, which is read for it once in a run."""
        if number not in self._sizes:
            self._sizes[number] = size_of(self.rows[number])
        return self._sizes[number]

    def _answer_round(self, turn: Round) -> dict[int, Answer]:
        rows = [self.rows[number] for number in turn.rows]
        answers = self.answerer.judge(rows, self._forms.get(turn.group) or self._free)
        return {
            number: replace(answer, task=task_of(self.rows, number), origin=origin_of(self.rows, number))
            for number, answer in zip(turn.rows, answers, strict=True)
        }

    def _warm_up(self) -> None:
        """Before the first answers: let hardware that compiles each shape meet all that any answers will have."""
        for number, group in enumerate(self.groups):
            if number not in self._forms and len(group):
                row = self.rows[group[0]]
                length = self.answerer.planned_length(row)
                self._forms[number] = replace(self._free, length=length, rows=self.batch_size)
                self.answerer.warm_up(row, self._forms[number])

    @property
    def _free(self) -> Form:
        return Form(together=self.processes.share_weights)


def size_of(row: Conversation) -> tuple[int, int]:
    """Return what a row's prompt is sorted by: its images, then its characters; no image is opened for it."""
    texts = sum(len(part.text) for turn in row.turns for part in turn.parts if isinstance(part, Text))
    return len(row.images), texts


def answered(answer: Answer) -> Answered:
    """Return what metrics see of an answer."""
    return Answered(
        row=answer.source,
        generated=answer.said,
        accepted=answer.accepted,
        boxes=answer.boxes,
        expected_boxes=answer.expected_boxes,
        task=answer.task,
        origin=answer.origin,
    )
