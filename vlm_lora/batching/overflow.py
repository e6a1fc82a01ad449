"""Rows that are too long: ever smaller versions of a row, and the first of them that fits.

A row is never cut. `shrink_images` scales its images down; `trim_turns` leaves out its oldest exchanges, an
exchange being the user's turns with the answers to them, images included. System turns stay, and so does the last
exchange that has an answer to train on, with all that follows it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from vlm_lora.batching.canvases import Size
from vlm_lora.batching.encoded import EncodedRow
from vlm_lora.data.conversation import Conversation, Turn
from vlm_lora.data.wording import counted
from vlm_lora.errors import TooLongError

logger = logging.getLogger(__name__)

Attempt = Callable[[Conversation, float], EncodedRow]
"""Encodes a conversation with its images at a share of their width and height; raises TooLongError."""

SIDES = tuple(2 ** (-step / 8) for step in range(1, 25))
"""Shares of an image's width and height that are tried: down to an eighth, 16 % fewer pixels a step."""

COARSE_SIDES = SIDES[3::4]
"""Those that are tried where images are brought to a few sizes: 29 % off a side each, so that sizes stay few."""

LEAST_SIDE = 28
"""An image's shorter side in pixels is not scaled below this: one merged patch of Qwen's vision tower."""

_CURES = {
    "error": "--on_overflow shrink_images scales a row's images down, trim_turns leaves out its oldest questions "
    "with their answers, drop leaves out the row.",
    "drop": "--on_overflow drop leaves it out of training and evaluation.",
}
_GENERAL_CURE = "Raise --max_length, shorten or split the row, or use smaller images; rows are never cut."


@dataclass(frozen=True, kw_only=True)
class _Smaller:
    """One smaller version of a row."""

    conversation: Conversation
    side: float = 1.0
    change: str
    """What was changed, in words."""


def encode_within_limit(
    conversation: Conversation, policy: str, attempt: Attempt, sides: Sequence[float] = SIDES
) -> EncodedRow:
    """Return the row as it is, or the largest of its smaller versions that fits.

    Args:
        conversation: the row.
        policy: one of `config.OVERFLOW_POLICIES`.
        attempt: encodes one version.
        sides: shares of images' sides that are tried, the largest first.

    Raises:
        TooLongError: none fits; the message says why the policy does not help.
    """
    try:
        return attempt(conversation, 1.0)
    except TooLongError as error:
        whole = error
    versions = _versions(conversation, policy, sides)
    if not versions:
        raise _refused(conversation, whole, _why_none(policy)) from whole
    try:
        row = _attempted(versions[-1], attempt)
    except TooLongError as error:
        raise _refused(conversation, whole, _why_too_little(policy, whole, error)) from error
    low, high = 0, len(versions) - 1
    while low < high:  # the version at `high` fits, as `row`
        middle = (low + high) // 2
        try:
            row, high = _attempted(versions[middle], attempt), middle
        except TooLongError:
            low = middle + 1
    _say_once(policy, f"{conversation.source}: {whole} {row.overflow}.")
    return row


def scaled(size: Size, side: float) -> Size:
    """Return a share of a width and height in pixels, the shorter side `LEAST_SIDE` or more."""
    share = min(1.0, max(side, LEAST_SIDE / min(size)))
    width, height = (max(1, round(length * share)) for length in size)
    return width, height


def exchanges(turns: Sequence[Turn]) -> list[list[int]]:
    """Return the indices of the turns of each exchange, system turns left out.

    An exchange begins at a user turn behind an answer, or behind what a tool answered.

    >>> [turn.role for turn in turns]  # doctest: +SKIP
    ['system', 'user', 'assistant', 'user', 'user', 'assistant']
    >>> exchanges(turns)  # doctest: +SKIP
    [[1, 2], [3, 4, 5]]
    """
    found: list[list[int]] = []
    before = None
    for number, turn in enumerate(turns):
        if turn.role == "system":
            continue
        if before is None or (turn.role == "user" and before in ("assistant", "tool")):
            found.append([])
        found[-1].append(number)
        before = turn.role
    return found


def _versions(conversation: Conversation, policy: str, sides: Sequence[float]) -> list[_Smaller]:
    """Return the smaller versions of a row, each smaller than the one before."""
    if policy == "shrink_images" and conversation.images:
        return [
            _Smaller(conversation=conversation, side=side, change=f"Its images are at {side:.0%} of their sides")
            for side in sides
        ]
    if policy == "trim_turns":
        parts = exchanges(conversation.turns)
        answered = [n for n, part in enumerate(parts) if any(conversation.turns[i].is_answer for i in part)]
        return [_without(conversation, parts[:count]) for count in range(1, answered[-1] + 1 if answered else 1)]
    return []


def _without(conversation: Conversation, removed: Sequence[Sequence[int]]) -> _Smaller:
    gone = {number for part in removed for number in part}
    turns = tuple(turn for number, turn in enumerate(conversation.turns) if number not in gone)
    smaller = replace(conversation, turns=turns)
    pictures = len(conversation.images) - len(smaller.images)
    shown = f" with {counted(pictures, 'image')}" if pictures else ""
    change = f"Its first {len(gone)} turns{shown} are left out"
    return _Smaller(conversation=smaller, change=change)


def _attempted(version: _Smaller, attempt: Attempt) -> EncodedRow:
    return replace(attempt(version.conversation, version.side), overflow=version.change)


def _refused(conversation: Conversation, whole: TooLongError, why: str) -> TooLongError:
    message = f"{conversation.source}: {whole} {why}"
    return TooLongError(message, tokens=whole.tokens, limit=whole.limit)


def _why_none(policy: str) -> str:
    reasons = {
        "shrink_images": "--on_overflow shrink_images cannot help: the row has no image.",
        "trim_turns": "--on_overflow trim_turns cannot help: the row has only one question with its answer.",
    }
    return f"{_CURES.get(policy) or reasons[policy]} {_GENERAL_CURE}"


def _why_too_little(policy: str, whole: TooLongError, smallest: TooLongError) -> str:
    if policy == "trim_turns":
        why = f"the last question and its answer alone take {smallest.tokens}"
    elif smallest.tokens == whole.tokens:
        why = (
            f"its images take as many tokens at {SIDES[-1]:.0%} of their sides (not below {LEAST_SIDE} pixels) as "
            "they do now; many models read every image at one size"
        )
    else:
        why = f"with images at {SIDES[-1]:.0%} of their sides there are {smallest.tokens}"
    return f"--on_overflow {policy} cannot help: {why}. {_GENERAL_CURE}"


_said: set[str] = set()


def _say_once(policy: str, text: str) -> None:
    """Log the first row of this process that a policy changed."""
    if policy not in _said:
        _said.add(policy)
        logger.warning("%s Further rows that --on_overflow %s changes are not reported one by one.", text, policy)
