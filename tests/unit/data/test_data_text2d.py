"""Text laid out as on the page, against pages drawn on a grid of characters."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from vlm_lora.data.ocr.pages import Item
from vlm_lora.data.ocr.text2d import group_lines, join_lines, lay_out

WIDTH, HEIGHT = 10, 20
"""Pixels of a character of the drawn pages."""

PAGE = """\
INVOICE             No 7
item      count    price
apples        3     1.50
pears        12    14.00
            total  15.50"""


def boxes_of(text: str) -> list[Item]:
    """Return the words of a page drawn in a font of one width, with their boxes."""
    found = []
    for row, line in enumerate(text.split("\n")):
        at = 0
        for word in line.split():
            at = line.index(word, at)
            box = (at * WIDTH, row * HEIGHT + 2, (at + len(word)) * WIDTH, row * HEIGHT + 18)
            found.append(Item(text=word, box=box))
            at += len(word)
    return found


def test_a_table_comes_back_as_it_was_drawn() -> None:
    assert lay_out(boxes_of(PAGE)) == PAGE


def test_the_order_of_the_items_does_not_matter() -> None:
    items = boxes_of(PAGE)
    for seed in range(5):
        random.Random(seed).shuffle(items)
        assert lay_out(items) == PAGE
        assert join_lines(items) == "\n".join(" ".join(line.split()) for line in PAGE.split("\n"))


def test_moved_boxes_give_another_layout() -> None:
    items = boxes_of(PAGE)
    moved = [*items[:-1], Item(text=items[-1].text, box=(0, 100, 50, 118))]
    assert lay_out(moved) != PAGE


def test_uneven_lines_are_kept_together() -> None:
    items = [
        Item(text="a", box=(0, 0, 10, 20)),
        Item(text="b", box=(20, 6, 30, 24)),
        Item(text="c", box=(0, 30, 10, 50)),
    ]
    assert [[item.text for item in line] for line in group_lines(items)] == [["a", "b"], ["c"]]


def test_narrow_and_empty_boxes_never_join_words_nor_make_endless_lines() -> None:
    close = [Item(text="ab", box=(0, 0, 20, 10)), Item(text="cd", box=(20, 0, 40, 10))]
    assert lay_out(close) == "ab cd"
    points = [Item(text="a", box=(0, 0, 0, 0)), Item(text="b", box=(10**6, 0, 10**6, 0))]
    assert lay_out(points).split() == ["a", "b"]
    assert len(lay_out(points)) <= 402
    assert lay_out([]) == lay_out([Item(text="a", box=None)]) == ""


WORD = st.from_regex(r"[a-z]{1,8}", fullmatch=True)


@given(st.lists(st.tuples(WORD, *[st.integers(0, 500)] * 4), max_size=12))
def test_every_word_is_there_once(drawn: list[tuple[str, int, int, int, int]]) -> None:
    items = [Item(text=text, box=(x, y, x + w, y + h)) for text, x, y, w, h in drawn]
    assert sorted(lay_out(items).split()) == sorted(text for text, *_ in drawn)
