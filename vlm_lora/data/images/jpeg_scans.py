"""How often a JPEG goes over its image: a few kilobytes can ask for thousands of passes, which take hours."""

from __future__ import annotations

import re

MAX_SCANS = 100
"""Encoders write about ten, the most thorough ones a few dozen."""

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""The end of a scan's data: 0xff is stuffed there with a zero, and restart markers belong to the data."""
_START_OF_SCAN, _END = 0xDA, 0xD9
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a length."""


def count_scans(encoded: bytes) -> int:
    """Return the number of scans of a JPEG's first image; what lies in its metadata or behind it does not count.

    A file that is cut off or broken gives the scans up to there: decoding it says what is wrong.
    """
    scans, position = 0, 2
    while position + 4 <= len(encoded):
        kind = encoded[position + 1]
        if encoded[position] != 0xFF or kind == _END:
            break
        if kind == 0xFF:  # padding before a marker
            position += 1
        elif kind in _BARE:
            position += 2
        else:
            position += 2 + int.from_bytes(encoded[position + 2 : position + 4], "big")
            if kind == _START_OF_SCAN:
                scans += 1
                following = _MARKER.search(encoded, position)
                position = following.start() if following else len(encoded)
    return scans
