"""A page of OCR data: its words, lines, paragraphs and formulas with boxes, its text, and its size.

`{"text": {"lines": [{"text": "...", "bbox": [x1, y1, x2, y2]}], "text": "...", "text2d": "..."}, "image": {...}}`;
`box` is another name of `bbox`, and `latex` of `text` inside an item. Null says nothing, as a missing key does.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vlm_lora.data.columns.harmless import holds_nothing
from vlm_lora.data.columns.names import COLUMN_NAMES
from vlm_lora.data.conversations.unread import says_nothing
from vlm_lora.data.ocr.boxes import Edges, read_box
from vlm_lora.data.wording import quoted, short
from vlm_lora.errors import DataError

LEVELS = ("lines", "paragraphs", "words", "latex")
"""Kinds of items, in the order in which one is taken where a task names none."""

_TEXTS = ("text", "text2d")
_WANTED = f'Wanted is an object with any of {", ".join((*LEVELS, *_TEXTS))}, for example {{"lines": [...]}}.'


@dataclass(frozen=True, kw_only=True)
class Item:
    """One word, line, paragraph or formula."""

    text: str
    box: Edges | None
    """In pixels of the page's image: as given by `read_page`, whole and within the image by `clipped`."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What is known of one page."""

    items: Mapping[str, tuple[Item, ...]]
    """By level; a level that the data does not name is not there."""
    text: str | None = None
    text2d: str | None = None
    size: tuple[Any, Any] = (None, None)
    """Width and height that the data names; None where it does not."""
    blanks: tuple[Item, ...] = ()
    """Of a page with nothing to read, once its image's size is known: boxes in which nothing is written."""
    shown: tuple[int, int] | None = None
    """Width and height of the image in pixels, known by `clipped`."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to read."""
        written = any(item.text.strip() for items in self.items.values() for item in items)
        return not (written or (self.text or "").strip() or (self.text2d or "").strip())

    def written(self, level: str) -> tuple[Item, ...]:
        """Return a level's items where any holds text, else none."""
        items = self.items.get(level, ())
        return items if any(item.text.strip() for item in items) else ()

    def boxed(self, level: str) -> tuple[Item, ...]:
        """Return a level's items where each has a box, else none."""
        items = self.items.get(level, ())
        return items if all(item.box is not None for item in items) else ()


def holds_page(value: Any, column: str) -> bool:
    """Tell whether a column's value is surely a page of OCR data.

    Only in columns that are usually called so may it be JSON text, or hold nothing but its `text`.
    """
    usual = column.casefold() in COLUMN_NAMES["page"].usual
    if usual and isinstance(value, str):
        value = _parsed(value)
    if not isinstance(value, Mapping):
        return False
    inner = value.get("text")
    if isinstance(inner, Mapping):
        value, usual = inner, True
    if any(_is_items(value.get(level)) for level in LEVELS) or isinstance(value.get("text2d"), str):
        return True
    return usual and isinstance(value.get("text"), str)


def read_page(value: Any, ignored: Collection[str] = ()) -> Page:
    """Read what a column holds: the `text` object, the whole document around it, or either as JSON text.

    Args:
        value: what the column holds.
        ignored: keys of the page and its items that are left out.

    Raises:
        DataError: it is none of these, an item lacks its text or has a broken box, or there is a key that nobody
            reads; the item or key is named.
    """
    document, text = _opened(value, ignored)
    if document is None or text is None:
        raise DataError(f"{short(value)} is no page. {_WANTED}")
    others = dict.fromkeys(key for key, _ in unread_of_page(value, ignored))
    if others and text.keys() & {*LEVELS, *_TEXTS}:
        raise DataError(
            f"The page has {quoted(others)}, which is not read. Leave it out, or type --ignore_keys "
            f"{' '.join(others)} to leave it out of all rows."
        )
    size = None if text is document else document.get("image")
    known = {key: text[key] for key in (*LEVELS, *_TEXTS) if text.get(key) is not None}
    if text and not known and not any(key in text for key in (*LEVELS, *_TEXTS)):
        raise DataError(f"{short(value)} has none of the known keys. {_WANTED}")
    page = Page(
        items={level: _read_items(_without(known[level], ignored), level) for level in LEVELS if level in known},
        text=_read_text(known, "text"),
        text2d=_read_text(known, "text2d"),
        size=(size.get("width"), size.get("height")) if isinstance(size, Mapping) else (None, None),
    )
    if page.is_empty:
        return page
    # On a page that holds text, a blank one was left out: as an answer it would teach to read nothing.
    return replace(page, text=_unless_blank(page.text), text2d=_unless_blank(page.text2d))


def unread_of_page(value: Any, ignored: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the keys of a page and of its items, with what they hold, that hold something and that nobody reads.

    Args:
        value: as of `read_page`; what is no page has none.
        ignored: keys that are left out.
    """
    document, text = _opened(value, ignored)
    if document is None or text is None:
        return
    if text is not document:
        yield from _left_over(document, ("text", "image"))
    yield from _left_over(text, (*LEVELS, *_TEXTS, "image"))
    if isinstance(document.get("image"), Mapping):
        yield from _left_over(document["image"], (*_OF_IMAGES, *ignored))
    for items in (text.get(level) for level in LEVELS):
        for item in _without(items, ignored) if isinstance(items, list | tuple) else ():
            if isinstance(item, Mapping):
                yield from _left_over(item, _OF_ITEMS)


_OF_ITEMS = ("text", "latex", "bbox", "box")
_OF_IMAGES = ("width", "height", "path", "bytes")
_OF_RECOGNITION = frozenset(
    [
        *("conf", "probability", "prob", "page", "pages", "block", "block_num", "line_num", "par_num", "word_num"),
        *("page_num", "angle", "rotation", "skew", "orientation", "direction", "order", "reading_order"),
    ]
)
"""Keys (case does not count) of how text was recognised and where it stands in order, in addition to `harmless`."""


def _left_over(given: Mapping[str, Any], read: Collection[str]) -> Iterator[tuple[str, Any]]:
    for key, held in given.items():
        known = key in read or key.casefold() in _OF_RECOGNITION or holds_nothing(key, held, key=True)
        if not known and not says_nothing(held):
            yield key, held


def _opened(value: Any, ignored: Collection[str]) -> tuple[Mapping[str, Any], Mapping[str, Any]] | tuple[None, None]:
    """Return the document, and the object of texts in it, which may be the document itself, without ignored keys."""
    document = _parsed(value) if isinstance(value, str) else value
    if not isinstance(document, Mapping):
        return None, None
    document = {key: held for key, held in document.items() if key not in ignored}
    inner = document.get("text")
    inner = _parsed(inner) if isinstance(inner, str) and inner.lstrip().startswith("{") else inner
    if not isinstance(inner, Mapping):
        return document, document
    return document, {key: held for key, held in inner.items() if key not in ignored}


def _without(items: Any, ignored: Collection[str]) -> Any:
    """Return a level's items without some keys; anything but a list as it is."""
    if not ignored or not isinstance(items, list | tuple):
        return items
    return [
        {key: held for key, held in item.items() if key not in ignored} if isinstance(item, Mapping) else item
        for item in items
    ]


def _read_items(value: Any, level: str) -> tuple[Item, ...]:
    if not isinstance(value, list | tuple):
        raise DataError(f'\'{level}\' is {short(value)}; wanted is a list of {{"text": ..., "bbox": [...]}}.')
    items = []
    for number, item in enumerate(value, start=1):
        try:
            items.append(_read_item(item))
        except DataError as error:
            raise DataError(f"Item {number} of '{level}': {error}") from error
    return tuple(items)


def _read_item(item: Any) -> Item:
    if not isinstance(item, Mapping):
        raise DataError(f'{short(item)} is no item; wanted is {{"text": ..., "bbox": [x1, y1, x2, y2]}}.')
    text, box = _one_of(item, "text", "latex"), _one_of(item, "bbox", "box")
    if not isinstance(text, str):
        raise DataError(f"its text is {short(text)}; wanted is text under 'text' (or 'latex').")
    if box is None:
        return Item(text=text, box=None)
    read_box(box, "xyxy", None, may_be_flat=True)  # only checked: rounded once, when the image's size is known
    left, top, right, bottom = box
    return Item(text=text, box=(left, top, right, bottom))


def _one_of(item: Mapping[str, Any], name: str, other: str) -> Any:
    """Return the value under a key or its other name. Raises DataError where both are given and differ."""
    given = [item[key] for key in (name, other) if item.get(key) is not None]
    if len(given) == 2 and given[0] != given[1]:
        raise DataError(f"it has '{name}' and '{other}', two names of one thing, with different values.")
    return given[0] if given else None


def _read_text(known: Mapping[str, Any], key: str) -> str | None:
    value = known.get(key)
    if value is not None and not isinstance(value, str):
        raise DataError(f"'{key}' is {short(value)}; wanted is text.")
    return value


def _unless_blank(text: str | None) -> str | None:
    return text if text is not None and text.strip() else None


def _parsed(text: str) -> Any:
    """Return JSON text's object, or the text itself where it is none."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _is_items(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(item, Mapping) and ("text" in item or "latex" in item) for item in value
    )
