"""Levenshtein distance, fast enough for whole pages in plain Python."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Return how many insertions, deletions and replacements turn one sequence into the other.

    A column of the usual table is kept as two integers, which bits of it are one more and one less than the bit
    above: Myers 1999, in Hyyro's form (2003), with Python's integers of any width.

    Args:
        first: characters of a text, or words.
        second: the same of another.
    """
    if not first or not second:
        return len(first) + len(second)
    width = len(first)
    everywhere, last = (1 << width) - 1, 1 << (width - 1)
    places: defaultdict[Hashable, int] = defaultdict(int)
    for number, item in enumerate(first):
        places[item] |= 1 << number
    more, less, distance = everywhere, 0, width
    for item in second:
        equal = places.get(item, 0)
        vertical = equal | less
        horizontal = (((equal & more) + more) ^ more) | equal
        up, down = less | ~(horizontal | more), more & horizontal
        distance += bool(up & last) - bool(down & last)
        up, down = (up << 1) | 1, down << 1
        more, less = (down | ~(vertical | up)) & everywhere, up & vertical & everywhere
    return distance
