"""The words and marks that VQA accuracy normalizes, as VQAEval has them (its oddities included)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

PUNCTUATION = (";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!")

ARTICLES = frozenset({"a", "an", "the"})

_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS: Mapping[str, str] = {"none": "0", **{word: str(number) for number, word in enumerate(_COUNTED)}}

_ONE_APOSTROPHE = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
    "isn't "
    "it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't "
    "somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's "
    "they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's "
    "where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've"
)
"""Read where the apostrophe is missing."""

_TWO_APOSTROPHES = (
    "couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've "
    "there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've"
)
"""Read where either apostrophe is missing; without both they are left as they are."""

_THREE_APOSTROPHES = "'ow's'at y'all'd've"
"""Read where any one of the three is missing."""

_ODD = {"somebody'd": "somebodyd"}
"""The one entry that takes an apostrophe away."""


def _without_one(word: str) -> Iterator[str]:
    for place, letter in enumerate(word):
        if letter == "'":
            yield word[:place] + word[place + 1 :]


_KNOWN = f"{_ONE_APOSTROPHE} {_TWO_APOSTROPHES} {_THREE_APOSTROPHES}".split()

CONTRACTIONS: Mapping[str, str] = {**{bare: word for word in _KNOWN for bare in _without_one(word)}, **_ODD}
"""What each spelling becomes."""
