"""Exact match: the answer equals an accepted one, letter by letter."""

from __future__ import annotations

from collections.abc import Sequence


def said(text: str) -> str:
    """Return what an answer says behind its thoughts, without white space at its ends."""
    return text.rpartition("</think>")[2].strip()


def exact_match(generated: str, accepted: Sequence[str]) -> float:
    """Return 1 where the answer equals an accepted one, thoughts and white space at the ends aside, else 0."""
    return float(any(said(generated) == said(text) for text in accepted))
