"""Character and word error rate, counted by jiwer: edits by the length of the expected text.

The figure is that of all rows together: all edits by all characters (words), as jiwer gives it for lists, so that long
texts weigh more. Of several accepted answers the one with the lowest rate counts. A rate can be above 1. A text
without any characters counts as one of length 1, which keeps its rate finite.

jiwer strips texts; for words it also makes runs of white space one blank, and splits at blanks alone: a single line
break does not part two words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vlm_lora.metrics.statistics import Combine, Count, Counted, Sums

Edits = tuple[int, int]
"""How many edits, and the length of the expected text."""


def character_edits(generated: str, expected: str) -> Edits:
    """Return the edits between two texts in characters, and the expected one's length."""
    import jiwer

    found = jiwer.process_characters(expected, generated)
    length = found.hits + found.substitutions + found.deletions
    return found.substitutions + found.deletions + found.insertions, length


def word_edits(generated: str, expected: str) -> Edits:
    """Return the edits between two texts in words, and the expected one's length."""
    import jiwer

    found = jiwer.process_words(expected, generated)
    length = found.hits + found.substitutions + found.deletions
    return found.substitutions + found.deletions + found.insertions, length


def fewest_edits(edits: Callable[[str, str], Edits], generated: str, accepted: Sequence[str]) -> Edits:
    """Return the edits to the accepted answer with the lowest rate; the first of equal ones."""
    return min((edits(generated, text) for text in accepted), key=rate, default=(0, 0))


def rate(edits: Edits) -> float:
    """Return edits by length."""
    return edits[0] / max(edits[1], 1)


def error_rate(name: str, edits: Callable[[str, str], Edits]) -> tuple[Count, Combine]:
    """Return how an error rate is counted, and how the edits and lengths of rows become one figure."""

    def count(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Counted:
        found = [fewest_edits(edits, *texts) for texts in zip(predictions, references, strict=True)]
        return Counted(sums=np.array(found, dtype=np.float64).reshape(-1, 2), rows=[{name: rate(one)} for one in found])

    def combine(sums: Sums) -> Mapping[str, NDArray[np.float64]]:
        return {name: sums[..., 0] / np.maximum(sums[..., 1], 1.0)}

    return count, combine
