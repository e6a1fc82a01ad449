"""Generated answers: for one question, and for every row of a data set with exact match."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vlm_lora.batching.boxes.conventions import PIXELS, BoxConvention
from vlm_lora.batching.boxes.spellings import spelling_of
from vlm_lora.batching.boxes.writing import Region, read_places
from vlm_lora.batching.collator import Collator
from vlm_lora.batching.encoded import EncodedRow
from vlm_lora.batching.inputs import moved
from vlm_lora.data.conversation import Conversation
from vlm_lora.evaluation.asked import image_names, question_of
from vlm_lora.model.untouched import at_rest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One generated answer next to what would have been right."""

    source: str
    generated: str
    accepted: tuple[str, ...]
    boxes: tuple[Region, ...] | None = None
    """Where the row's answer has boxes: those that were generated, in pixels of the row's images as they are stored."""
    expected_boxes: tuple[Region, ...] = ()
    """Those of the row's answer, by the same way: written as the model counts and read back."""
    prompt: str = ""
    """What was asked."""
    images: tuple[str, ...] = ()
    """The names of the row's images, in order."""
    task: str | None = None
    """The task that the row asks for, where the data name tasks."""
    origin: str | None = None
    """The name of its data set, where there are several."""

    @property
    def said(self) -> str:
        """What was generated behind thoughts, without white space at its ends."""
        return _said(self.generated)

    @property
    def exact(self) -> bool:
        """True where the generated text equals an accepted answer, white space at the ends and thoughts aside."""
        return any(self.said == _said(text) for text in self.accepted)


def _said(text: str) -> str:
    """Return what an answer says behind its thoughts."""
    return text.rpartition("</think>")[2].strip()


@dataclass(frozen=True, kw_only=True)
class ExactMatch:
    """How many rows were answered exactly, with the uncertainty of that share."""

    correct: int
    total: int

    @property
    def share(self) -> float:
        """Correct answers divided by rows."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson score interval (Wilson 1927)."""
        z, n, p = 1.959964, self.total, self.share
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        # At the ends the formula gives exactly 0 and 1; its rounding does not.
        return (0.0 if self.correct == 0 else centre - half), (1.0 if self.correct == n else centre + half)

    @property
    def figures(self) -> dict[str, float]:
        """What results have of it."""
        low, high = self.interval
        return {"eval_exact_match": self.share, "eval_exact_match_low_95": low, "eval_exact_match_high_95": high}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.1%} ({self.correct} of {self.total}; 95 % interval {low:.1%} to {high:.1%})"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What was generated for one prompt."""

    text: str
    prompt: EncodedRow

    def boxes(self, convention: BoxConvention, *, bare: bool = True) -> tuple[Region, ...]:
        """Return the boxes and points that it names, in pixels of the images as they are stored.

        Args:
            convention: how the model counts.
            bare: whether lists of numbers without a key or mark are boxes.
        """
        return read_places(self.text, self.prompt.seen, convention, bare=bare)


@dataclass(frozen=True, kw_only=True)
class Form:
    """What the batch of some prompts is to look like."""

    length: int | None = None
    """Tokens that prompts are padded to; None for those of the longest."""
    rows: int | None = None
    """Rows of the batch; what lacks repeats the first prompt. None for as many as there are prompts."""
    together: bool = False
    """Whether other processes wait for this one's share of the weights until all of them have all answers."""


class Answerer:
    """Generates greedily with one model.

    Args:
        model: a generative model, with or without PEFT.
        collator: makes left-padded prompt batches.
        tokenizer: decodes what is generated.
        max_new_tokens: longest answer in tokens.
        generation_kwargs: what the backend adds to `generate`.
        boxes: how the model counts and writes boxes.
    """

    def __init__(
        self,
        *,
        model: Any,
        collator: Collator,
        tokenizer: Any,
        max_new_tokens: int,
        generation_kwargs: Mapping[str, Any],
        boxes: BoxConvention = PIXELS,
    ) -> None:
        self._boxes = boxes
        self._hidden = _hidden_tokens(tokenizer, kept=spelling_of(boxes).marks)
        self.model = model
        self._collator = collator
        self._tokenizer = tokenizer
        self._kwargs = {
            "max_new_tokens": max_new_tokens,
            "do_sample": False,
            "num_beams": 1,
            "use_cache": True,
            **generation_kwargs,
        }

    @property
    def boxes(self) -> BoxConvention:
        """How the model counts and writes boxes."""
        return self._boxes

    def answer(self, conversations: Sequence[Conversation]) -> list[str]:
        """Return the answer to each conversation's last question, special tokens removed but for marks of boxes."""
        return [reply.text for reply in self.reply(conversations)]

    def reply(self, conversations: Sequence[Conversation], form: Form | None = None) -> list[Reply]:
        """Return the answers, as `answer`, each with the prompt that it answers."""
        prompts = self._collator.prompts(conversations)
        generated = self._generate(prompts, form or Form())
        shown = [[token for token in ids if token not in self._hidden] for ids in generated]
        texts: list[str] = self._tokenizer.batch_decode(shown, skip_special_tokens=False)
        return [Reply(text=text, prompt=encoded) for text, encoded in zip(texts, prompts, strict=True)]

    def judge(self, rows: Sequence[Conversation], form: Form | None = None) -> list[Answer]:
        """Answer rows in one batch, each next to what would have been right."""
        return [self._judged(row, reply) for row, reply in zip(rows, self.reply(rows, form), strict=True)]

    def planned_length(self, row: Conversation) -> int | None:
        """Return the length that prompts of rows of this row's planned shape are padded to; None without a plan."""
        return self._collator.planned_length(row)

    def warm_up(self, row: Conversation, form: Form) -> None:
        """Let hardware that compiles each shape meet those of answers as long as there are, whatever this row's is."""
        self._generate(self._collator.prompts([row]), form, min_new_tokens=self._kwargs["max_new_tokens"])

    @torch.no_grad()
    def _generate(self, prompts: Sequence[EncodedRow], form: Form, **more: Any) -> list[list[int]]:
        """Return the tokens that are generated after each prompt."""
        with at_rest(self.model):
            batch = moved(self._collator.pad_prompts(prompts, length=form.length, rows=form.rows), self.model)
            generated = self.model.generate(**batch, **self._kwargs, synced_gpus=form.together, **more)
        # Cut on the host: hardware that compiles would make a graph of each number of tokens.
        rows: list[list[int]] = generated.tolist()
        return [row[batch["input_ids"].shape[1] :] for row in rows[: len(prompts)]]

    def _judged(self, row: Conversation, reply: Reply) -> Answer:
        answer = Answer(
            source=str(row.source),
            generated=reply.text,
            accepted=self._accepted(row, reply.prompt.answer),
            prompt=question_of(row),
            images=image_names(row),
        )
        if reply.prompt.answer is None:
            return answer
        expected = read_places(reply.prompt.answer, reply.prompt.seen, self._boxes)
        return replace(answer, boxes=reply.boxes(self._boxes), expected_boxes=expected)

    def _accepted(self, row: Conversation, written: str | None) -> tuple[str, ...]:
        """Return the texts that count as right; calls of tools count as the model's template writes them.

        Args:
            row: what is asked.
            written: its answer with boxes as the model counts, where it has any.
        """
        if row.answer.tool_calls:
            return (self._collator.produced(row, self._tokenizer),)
        return accepted_answers(row, written)


def _hidden_tokens(tokenizer: Any, *, kept: Sequence[str]) -> frozenset[int]:
    """Return the ids of all special tokens, which an answer's text is without, but for some."""
    special = {token_id for token_id, added in tokenizer.added_tokens_decoder.items() if added.special}
    return frozenset(special | set(tokenizer.all_special_ids)) - {
        token_id for token_id, added in tokenizer.added_tokens_decoder.items() if added.content in kept
    }


def accepted_answers(row: Conversation, written: str | None = None) -> tuple[str, ...]:
    """Return the texts that count as right for a row's last answer.

    Args:
        row: the row.
        written: its answer as the model is to write it (`EncodedRow.answer`), where that has boxes.
    """
    return row.accepted_answers or (row.answer.text if written is None else written,)


def exact_match(answers: Sequence[Answer]) -> ExactMatch:
    """Count the exact answers."""
    return ExactMatch(correct=sum(answer.exact for answer in answers), total=len(answers))
