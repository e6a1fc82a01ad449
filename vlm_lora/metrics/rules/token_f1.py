"""Token F1 of SQuAD: how many words an answer shares with an accepted one.

As SQuAD 2.0's evaluation script: case, punctuation and English articles are left out, words count as often as they
stand there, the best accepted answer counts, and two answers without any words are equal.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def token_f1(generated: str, accepted: Sequence[str]) -> float:
    """Return the harmonic mean of the words' precision and recall, 0 to 1."""
    words = _words(generated)
    return max((_f1(words, _words(text)) for text in accepted), default=0.0)


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _f1(generated: list[str], expected: list[str]) -> float:
    if not generated or not expected:
        return float(generated == expected)
    shared = (Counter(generated) & Counter(expected)).total()
    # 2 * precision * recall / (precision + recall), without a division by zero.
    return 2 * shared / (len(generated) + len(expected))
