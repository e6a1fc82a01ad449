"""VQA accuracy: how many of several annotators agree with an answer.

As VQAEval (GT-Vision-Lab/VQA at a013f00, PythonEvaluationTools/vqaEvaluation/vqaEval.py): the mean over annotators of
min(1, other annotators who gave this answer / 3). Where the annotators disagree, their answers and the generated one
are normalized first (punctuation, case, number words, articles, contractions); where all say the same, texts are
compared as they are, so that "Yes" is wrong for ten times "yes". A single annotator gives 0, and less than four equal
ones less than 1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from vlm_lora.metrics.rules.vqa_words import ARTICLES, CONTRACTIONS, NUMBERS, PUNCTUATION

_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS = 32
"""So many periods are left out at most: VQAEval gives the value of re.UNICODE where the count is meant."""
_ENOUGH = 3


def vqa_accuracy(generated: str, accepted: Sequence[str]) -> float:
    """Return how well the answer agrees with the annotators', 0 to 1.

    Args:
        generated: the answer.
        accepted: one for each annotator, in any order; equal ones stand in it several times.
    """
    answer = _on_one_line(generated)
    annotators = [_on_one_line(text) for text in accepted]
    if len(set(annotators)) > 1:
        answer = normalized(answer)
        annotators = [normalized(text) for text in annotators]
    if not annotators:
        return 0.0
    agreeing = Counter(annotators)[answer]
    # An annotator who gave this answer sees one fewer among the others.
    own = agreeing * min(1.0, (agreeing - 1) / _ENOUGH)
    others = (len(annotators) - agreeing) * min(1.0, agreeing / _ENOUGH)
    return (own + others) / len(annotators)


def normalized(text: str) -> str:
    """Return an answer without punctuation and articles, in small letters, number words as digits."""
    return _words(_without_punctuation(text))


def _on_one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(text: str) -> str:
    joins = _COMMA.search(text) is not None
    left = text
    for mark in PUNCTUATION:
        at_edge = f"{mark} " in text or f" {mark}" in text
        left = left.replace(mark, "" if at_edge or joins else " ")
    return _PERIOD.sub("", left, count=_PERIODS)


def _words(text: str) -> str:
    digits = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in digits if word not in ARTICLES)
