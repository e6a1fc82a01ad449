"""The words and numbers that the base model learns to read.

The words come from text that every installation has: the language reference inside CPython
(``pydoc_data.topics``) and the text columns of ``vega_datasets``. A tenth of them, chosen by a
hash of the word, never appears in pre-training, so reading can be measured on unseen words.
"""

from __future__ import annotations

import random
import re
import zlib
from collections import Counter
from dataclasses import dataclass

from vlm_lora.demo.tables import text_values

MAX_LETTERS = 9


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Words split into the ones used for pre-training and the ones kept for measuring."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]


def is_held_out(word: str) -> bool:
    """Whether a word (in any letter case) is kept out of pre-training."""
    return zlib.crc32(word.lower().encode()) % 10 == 0


def english_words() -> list[str]:
    """Lower-case words of the Python language reference that occur at least twice, sorted."""
    from pydoc_data import topics

    found = Counter(re.findall(r"\b[a-z]{2,9}\b", " ".join(topics.topics.values())))
    return sorted(word for word, count in found.items() if count >= 2 and _pronounceable(word))


def table_words() -> list[str]:
    """Single words of the text columns of the tables, as spelt there, sorted."""
    parts = {part for text in text_values() for part in re.split(r"[^A-Za-z]+", text) if 2 <= len(part) <= MAX_LETTERS}
    return sorted(parts)


def load_vocabulary() -> Vocabulary:
    """All words, split by :func:`is_held_out`."""
    words = sorted(set(english_words()) | set(table_words()))
    return Vocabulary(
        training=tuple(word for word in words if not is_held_out(word)),
        held_out=tuple(word for word in words if is_held_out(word)),
    )


def random_word(rng: random.Random, words: tuple[str, ...]) -> str:
    """One word of at most ``MAX_LETTERS`` letters, often capitalised as names are."""
    word = rng.choice(words)
    style = rng.random()
    if style < 0.5:
        return word[0].upper() + word[1:]
    if style < 0.58:
        return word.upper()
    return word


def random_number(rng: random.Random) -> str:
    """A number as a table would print it: an integer, a decimal, or with a thousands comma."""
    style = rng.random()
    if style < 0.5:
        return str(rng.randrange(10 ** rng.choice((1, 2, 2, 3, 3, 4, 4))))
    if style < 0.72:
        return f"{rng.uniform(0, 10 ** rng.choice((1, 2, 2, 3))):.1f}"
    if style < 0.85:
        return f"{rng.uniform(0, 10 ** rng.choice((0, 1, 2))):.2f}"
    if style < 0.93:
        return f"{rng.randrange(1000, 100000):,}"
    return str(rng.randrange(1850, 2030))


def _pronounceable(word: str) -> bool:
    return any(letter in "aeiouy" for letter in word)
