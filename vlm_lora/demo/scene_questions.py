"""The questions that a scene of words and numbers answers."""

from __future__ import annotations

import itertools

from vlm_lora.demo.scenes import Exchange, Item


def questions(items: tuple[Item, ...], layout: str) -> list[Exchange]:
    """Every question that has exactly one right answer in this arrangement."""
    found = [*_position_questions(items), *_pair_questions(items, layout)]
    numbers = {item.text: float(item.text.replace(",", "")) for item in items if item.is_number}
    if len(numbers) >= 2 and len(set(numbers.values())) == len(numbers):
        found.append(_ask("What is the largest number?", max(numbers, key=lambda t: numbers[t])))
        found.append(_ask("What is the smallest number?", min(numbers, key=lambda t: numbers[t])))
    if len(numbers) == 1:
        found.append(_ask("What is the number?", next(iter(numbers))))
    words = [item for item in items if not item.is_number]
    if len(words) == 1:
        found.append(_ask("What is the word?", words[0].text))
    if layout in ("single", "list"):
        found.append(_ask("Read the text.", " ".join(item.text for item in items)))
    if layout == "columns":
        names = sorted(words, key=lambda item: item.x)
        found.append(_ask("Read the words.", " ".join(item.text for item in names)))
    if layout == "rows":
        found.append(_ask("Read the words.", " ".join(item.text for item in words)))
    return found


def _ask(question: str, answer: str) -> Exchange:
    return Exchange(question=question, answer=answer)


def _position_questions(items: tuple[Item, ...]) -> list[Exchange]:
    found = []
    for kind, members in (
        ("word", [item for item in items if not item.is_number]),
        ("number", [item for item in items if item.is_number]),
    ):
        if len(members) < 2:
            continue
        by_height = sorted(members, key=lambda item: item.y)
        if by_height[1].y - by_height[0].y >= 6:
            found.append(_ask(f"Which {kind} is at the top?", by_height[0].text))
        if by_height[-1].y - by_height[-2].y >= 6:
            found.append(_ask(f"Which {kind} is at the bottom?", by_height[-1].text))
        by_side = sorted(members, key=lambda item: item.x + item.width / 2)
        centres = [item.x + item.width / 2 for item in by_side]
        if centres[1] - centres[0] >= 10:
            found.append(_ask(f"Which {kind} is on the left?", by_side[0].text))
        if centres[-1] - centres[-2] >= 10:
            found.append(_ask(f"Which {kind} is on the right?", by_side[-1].text))
    return found


def _pair_questions(items: tuple[Item, ...], layout: str) -> list[Exchange]:
    found = []
    if layout == "list":
        for first, second in itertools.pairwise(items):
            kind = "number" if first.is_number else "word"
            found.append(_ask(f"Which {kind} is below {first.text}?", second.text))
            found.append(_ask(f"Which {kind} is above {second.text}?", first.text))
    for first in items:
        for second in items:
            if first is second or first.group < 0 or first.group != second.group:
                continue
            kind = "number" if second.is_number else "word"
            if layout == "columns":
                where = "above" if second.y < first.y else "below"
                found.append(_ask(f"Which {kind} is {where} {first.text}?", second.text))
            else:
                found.append(_ask(f"Which {kind} is next to {first.text}?", second.text))
            if kind == "number":
                found.append(_ask(f"What number goes with {first.text}?", second.text))
    return found
