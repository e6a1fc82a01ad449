"""ROUGE-L by rouge-score: F1 of the longest common subsequence of words, the best accepted answer, mean over rows.

Without stemming. rouge-score's words are of the letters a to z and digits: of texts in other scripts nothing is left,
and they score 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any


def rouge_l(generated: str, accepted: Sequence[str]) -> float:
    """Return the F1, 0 to 1, to the accepted answer for which it is highest."""
    return float(_scorer().score_multi(list(accepted), generated)["rougeL"].fmeasure) if accepted else 0.0


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=False)
