"""Generated answers: for one question, and for every row of a data set with exact match."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vlm_lora.batching.collator import Collator
from vlm_lora.batching.order import Rows
from vlm_lora.config.whole_files import write_whole
from vlm_lora.data.conversation import Conversation

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One generated answer next to what would have been right."""

    source: str
    generated: str
    accepted: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """True where the generated text equals an accepted answer, white space at the ends and thoughts aside."""
        return any(_said(self.generated) == _said(text) for text in self.accepted)


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

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.1%} ({self.correct} of {self.total}; 95 % interval {low:.1%} to {high:.1%})"


class Answerer:
    """Generates greedily with one model.

    Args:
        model: a generative model, with or without PEFT.
        collator: makes left-padded prompt batches.
        tokenizer: decodes what is generated.
        max_new_tokens: longest answer in tokens.
        generation_kwargs: what the backend adds to `generate`.
    """

    def __init__(
        self,
        *,
        model: Any,
        collator: Collator,
        tokenizer: Any,
        max_new_tokens: int,
        generation_kwargs: Mapping[str, Any],
    ) -> None:
        self._model = model
        self._collator = collator
        self._tokenizer = tokenizer
        self._kwargs = {
            "max_new_tokens": max_new_tokens,
            "do_sample": False,
            "num_beams": 1,
            "use_cache": True,
            **generation_kwargs,
        }

    @torch.no_grad()
    def answer(self, conversations: Sequence[Conversation]) -> list[str]:
        """Return the answer to each conversation's last question, special tokens removed."""
        was_training = self._model.training
        self._model.eval()
        batch = self._collator.prompt_batch(conversations)
        batch = {name: tensor.to(self._model.device) for name, tensor in batch.items()}
        generated = self._model.generate(**batch, **self._kwargs)
        self._model.train(was_training)
        prompt = batch["input_ids"].shape[1]
        texts: list[str] = self._tokenizer.batch_decode(generated[:, prompt:], skip_special_tokens=True)
        return texts

    def answer_all(self, rows: Rows, *, batch_size: int, description: str = "Answering") -> list[Answer]:
        """Answer every row, in order, with a progress bar."""
        answers: list[Answer] = []
        for start in tqdm(range(0, len(rows), batch_size), desc=description, leave=False):
            chunk = [rows[i] for i in range(start, min(start + batch_size, len(rows)))]
            texts = self.answer(chunk)
            answers += [
                Answer(source=str(row.source), generated=text, accepted=self._accepted(row))
                for row, text in zip(chunk, texts, strict=True)
            ]
        return answers

    def _accepted(self, row: Conversation) -> tuple[str, ...]:
        """Return the texts that count as right; calls of tools count as the model's template writes them."""
        return (self._collator.produced(row, self._tokenizer),) if row.answer.tool_calls else accepted_answers(row)


def accepted_answers(row: Conversation) -> tuple[str, ...]:
    """Return the texts that count as right for a row's last answer."""
    return row.accepted_answers or (row.answer.text,)


def exact_match(answers: Sequence[Answer]) -> ExactMatch:
    """Count the exact answers."""
    return ExactMatch(correct=sum(answer.exact for answer in answers), total=len(answers))


def write_answers(path: Path, answers: Sequence[Answer]) -> None:
    """Write one JSON object per answer: source, generated, accepted, exact. The file appears whole or not at all."""
    records = (
        {
            "source": answer.source,
            "generated": answer.generated,
            "accepted": list(answer.accepted),
            "exact": answer.exact,
        }
        for answer in answers
    )
    write_whole(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
