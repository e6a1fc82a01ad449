"""BLEU of all answers together, by sacrebleu with its defaults: up to 4 words, tokenizer 13a, exponential smoothing.

Given as a share, 0 to 1 (sacrebleu writes 100 times that). It is a figure of a whole set: its counts add up over rows,
and a row alone has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vlm_lora.metrics.statistics import Counted, Sums

WORDS = 4
"""Longest run of words that is counted."""


def count(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Counted:
    """Count for each row: length of the answer, length of the nearest reference, runs that match, runs there are."""
    from sacrebleu.metrics import BLEU

    metric = BLEU(effective_order=True)  # says nothing of the counts, and keeps a warning of short sentences away
    found = []
    for generated, accepted in zip(predictions, references, strict=True):
        score = metric.sentence_score(generated, list(accepted))
        found.append((score.sys_len, score.ref_len, *score.counts, *score.totals))
    return Counted(sums=np.array(found, dtype=np.float64).reshape(-1, 2 + 2 * WORDS), rows=[{} for _ in found])


def combine(sums: Sums) -> Mapping[str, NDArray[np.float64]]:
    """Return BLEU of sums of rows, as sacrebleu's `compute_bleu` has it."""
    given, wanted = sums[..., 0], sums[..., 1]
    matches, runs = sums[..., 2 : 2 + WORDS], sums[..., 2 + WORDS :]
    missed = np.logical_and(matches == 0, runs > 0)
    # Exponential smoothing: the first length without a match counts as half a match, the next as a quarter, ...
    smoothed = np.where(missed, 1.0 / 2.0 ** np.cumsum(missed, axis=-1), matches)
    precisions = smoothed / np.where(runs > 0, runs, 1.0)
    possible = np.logical_and((runs > 0).all(axis=-1), (matches > 0).any(axis=-1))
    mean = np.exp(np.log(np.where(np.expand_dims(possible, -1), precisions, 1.0)).mean(axis=-1))
    brevity = np.where(given < wanted, np.exp(1 - wanted / np.where(given > 0, given, 1.0)), 1.0)
    return {"bleu": np.where(possible, brevity * mean, 0.0)}
