"""Relaxed accuracy of ChartQA: numbers may be 5 % off, other answers must be equal but for case.

As `relaxed_correctness` in google-research/pix2struct, pix2struct/metrics.py (the one that the papers of Pix2Struct,
MatCha and DePlot report): what `float()` reads is a number, and a percent sign divides it by 100. So "1,541" is a text,
"5%" equals "0.05" and is wrong where "5" is right. Newer copies of the rule, as in lmms-eval, leave out commas and the
percent sign, and give other scores.
"""

from __future__ import annotations

from collections.abc import Sequence

TOLERANCE = 0.05


def relaxed_accuracy(generated: str, accepted: Sequence[str]) -> float:
    """Return 1 where the answer is close enough to an accepted one, else 0."""
    return float(any(_is_close(generated, text) for text in accepted))


def _is_close(generated: str, expected: str) -> bool:
    given, wanted = _as_number(generated), _as_number(expected)
    # Nothing is within 5 % of zero: it must be written alike.
    if given is not None and wanted:
        return abs(given - wanted) / abs(wanted) <= TOLERANCE
    return generated.lower() == expected.lower()


def _as_number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
