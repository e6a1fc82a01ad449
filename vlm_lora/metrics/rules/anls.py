"""Average Normalized Levenshtein Similarity, of DocVQA and its relatives.

Biten et al. 2019 (arXiv 1907.00490), equation 1: the similarity to an accepted answer is 1 - NL, NL the edit distance
by the length of the longer text; where NL is 0.5 or more it is 0. The best accepted answer counts. Case is ignored,
white space within the text is not.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlm_lora.metrics.rules.edit_distance import edit_distance

THRESHOLD = 0.5


def anls(generated: str, accepted: Sequence[str]) -> float:
    """Return the similarity of the answer to the nearest accepted one: 0, or above 0.5 up to 1."""
    return max((_similarity(generated.strip().lower(), text.strip().lower()) for text in accepted), default=0.0)


def _similarity(generated: str, expected: str) -> float:
    longest = max(len(generated), len(expected))
    if longest == 0:
        return 1.0
    distance = edit_distance(generated, expected) / longest
    return 1 - distance if distance < THRESHOLD else 0.0
