"""Random scenes for pre-training: single texts, scattered ones, lists, and paired numbers.

A number of a pair stands next to, above or below the word that it belongs to.
"""

from __future__ import annotations

import random

from vlm_lora.demo.scene_questions import questions
from vlm_lora.demo.scenes import SIZE, Item, Scene, apart, text_height, text_width
from vlm_lora.demo.words import random_number, random_word


def random_scene(rng: random.Random, words: tuple[str, ...], *, easy: float = 0.0, layout: str | None = None) -> Scene:
    """A random scene; ``easy`` in [0, 1] is the share of plain single texts and short lists."""
    if layout is None:
        layout = rng.choice(("single", "list") if rng.random() < easy else _LAYOUTS)
    items = _ARRANGE[layout](rng, words)
    exchanges = [] if layout == "page" else list(dict.fromkeys(questions(items, layout)))
    rng.shuffle(exchanges)
    return Scene(items=items, exchanges=tuple(exchanges), style_seed=rng.getrandbits(32))


def _font_size(rng: random.Random, low: int, high: int) -> float:
    return rng.choice([half / 2 for half in range(2 * low, 2 * high + 1)])


def _text(rng: random.Random, words: tuple[str, ...], size: float, width: int, kind: str) -> str:
    """A word or number that fits into a width in pixels."""
    for _ in range(40):
        text = random_number(rng) if kind == "number" else random_word(rng, words)
        if text_width(text, size) <= width:
            return text
    return str(rng.randrange(10)) if kind == "number" else rng.choice(("no", "it", "in", "at"))


def _single(rng: random.Random, words: tuple[str, ...]) -> tuple[Item, ...]:
    size = _font_size(rng, 9, 15)
    text = _text(rng, words, size, SIZE - 2, rng.choice(("word", "number")))
    return (_at_random(rng, text, size, -1),)


def _at_random(rng: random.Random, text: str, size: float, group: int) -> Item:
    x = rng.randrange(max(1, SIZE - text_width(text, size) + 1))
    y = rng.randrange(max(1, SIZE - text_height(size) + 1))
    return Item(text=text, x=x, y=y, font_size=size, group=group)


def _scatter(rng: random.Random, words: tuple[str, ...]) -> tuple[Item, ...]:
    size = _font_size(rng, 9, 12)
    items: list[Item] = []
    wanted = rng.randrange(2, 6)
    for _ in range(30):
        kind = rng.choice(("word", "number"))
        item = _at_random(rng, _text(rng, words, size, 60, kind), size, -1)
        fresh = all(item.text != other.text for other in items)
        if fresh and all(apart(item.box, other.box, 2) for other in items):
            items.append(item)
        if len(items) == wanted:
            break
    return tuple(items)


def _distinct(rng: random.Random, words: tuple[str, ...], size: float, width: int, kind: str, count: int) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        text = _text(rng, words, size, width, kind)
        if text in found:
            width += 2
        else:
            found.append(text)
    return found


def _list(rng: random.Random, words: tuple[str, ...]) -> tuple[Item, ...]:
    size = _font_size(rng, 9, 13)
    count = rng.randrange(2, min(6, 90 // text_height(size) + 1))
    kind = rng.choice(("word", "word", "number"))
    texts = _distinct(rng, words, size, 80, kind, count)
    ys = _spread(rng, count, text_height(size))
    left = rng.randrange(max(1, SIZE - max(text_width(text, size) for text in texts)))
    return tuple(Item(text=text, x=left, y=y, font_size=size) for text, y in zip(texts, ys, strict=True))


def _spread(rng: random.Random, count: int, height: int) -> list[int]:
    """Tops of ``count`` rows of a height in pixels, evenly spaced, at a random offset."""
    pitch = rng.randrange(height, max(height + 1, (SIZE - 2) // count + 1))
    first = rng.randrange(max(1, SIZE - pitch * (count - 1) - height + 1))
    return [first + pitch * row for row in range(count)]


def _rows(rng: random.Random, words: tuple[str, ...]) -> tuple[Item, ...]:
    size = _font_size(rng, 9, 11)
    count = rng.randrange(2, 6)
    names = _distinct(rng, words, size, 46, "word", count)
    numbers = _distinct(rng, words, size, 34, "number", count)
    name_width = max(text_width(name, size) for name in names)
    number_width = max(text_width(number, size) for number in numbers)
    slack = SIZE - name_width - number_width - 6
    ragged = rng.random() < 0.5
    start = rng.randrange(max(1, slack // 2))
    right_aligned = rng.random() < 0.4
    swap = rng.random() < 0.2
    items = []
    for row, y in enumerate(_spread(rng, count, text_height(size))):
        gap = 4 + (rng.randrange(max(1, slack - start)) if ragged or row == 0 else 0)
        if row == 0:
            common = gap
        gap = gap if ragged else common
        width = text_width(names[row], size)
        x = start + (name_width - width if right_aligned else 0)
        items.append(Item(text=names[row], x=x, y=y, font_size=size, group=row))
        items.append(Item(text=numbers[row], x=start + name_width + gap, y=y, font_size=size, group=row))
    return _mirrored(items) if swap else tuple(items)


def _mirrored(items: list[Item]) -> tuple[Item, ...]:
    """The same image with the numbers on the left of the names."""
    return tuple(
        Item(text=i.text, x=max(0, SIZE - i.x - i.width), y=i.y, font_size=i.font_size, group=i.group) for i in items
    )


def _columns(rng: random.Random, words: tuple[str, ...]) -> tuple[Item, ...]:
    size = _font_size(rng, 9, 10)
    count = rng.choice((2, 3, 3, 4))
    cell = SIZE // count
    names = _distinct(rng, words, size, cell - 2, "word", count)
    numbers = _distinct(rng, words, size, cell - 2, "number", count)
    height = text_height(size)
    above = rng.random() < 0.75
    level = rng.random() < 0.3
    name_y = rng.randrange(max(height + 14, 50), SIZE - height + 1)
    if not above:
        name_y = SIZE - height - name_y
    items = []
    common = rng.random()
    for column in range(count):
        share = common if level else rng.random()
        room = name_y - height if above else SIZE - name_y - 2 * height
        offset = int(share * max(0, room - 1))
        y = offset if above else name_y + height + offset
        centre = cell * column + cell // 2 + rng.choice((-1, 0, 0, 1))
        for text, top in ((names[column], name_y), (numbers[column], y)):
            x = centre - text_width(text, size) // 2
            x = min(max(0, x), SIZE - text_width(text, size))
            items.append(Item(text=text, x=x, y=top, font_size=size, group=column))
    return tuple(items)


def _page(rng: random.Random, words: tuple[str, ...]) -> tuple[Item, ...]:
    """An image full of text, without questions: the most letters per image to learn from."""
    items: list[Item] = []
    y = rng.randrange(8)
    while True:
        size = _font_size(rng, 9, 12)
        if y + text_height(size) > SIZE:
            return tuple(items)
        x = rng.randrange(12)
        while True:
            kind = rng.choice(("word", "number"))
            text = _text(rng, words, size, SIZE, kind)
            if x + text_width(text, size) > SIZE:
                break
            items.append(Item(text=text, x=x, y=y, font_size=size))
            x += text_width(text, size) + rng.randrange(3, 12)
        y += text_height(size) + rng.randrange(5)


_ARRANGE = {
    "page": _page,
    "single": _single,
    "scatter": _scatter,
    "list": _list,
    "rows": _rows,
    "columns": _columns,
}
_LAYOUTS = (
    "single",
    "scatter",
    "scatter",
    "list",
    "rows",
    "rows",
    "rows",
    "columns",
    "columns",
    "columns",
    "columns",
)
