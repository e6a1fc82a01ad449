"""What one value lists as choices: a text for each place, and the letters or numbers by which the data calls them.

Lists and objects, also as JSON, Python or numpy writes them into cells, and texts with a mark before each choice.
"""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlm_lora.data.columns.harmless import holds_nothing
from vlm_lora.data.columns.names import NOTHING
from vlm_lora.data.conversations.texts import written_list
from vlm_lora.data.conversations.unread import says_nothing
from vlm_lora.data.images.values import looks_like_image
from vlm_lora.data.wording import quoted, short

ONE_EACH = re.compile(
    r"((?:choice|option|opt|candidate|alternative|ending)s?[ _.-]?)([a-z]|[0-9]{1,2})"
    r"|(answers?[ _.-]?)([a-z])|()([a-j])"
)
"""Names of columns or keys that hold one choice each, in small letters: what they share, and the place.

`answer_1`, `answer_2` are none: several people's answers are called so."""

_TEXT_KEYS = ("text", "value", "content", "choice", "option", "answer")
_NAME_KEYS = ("label", "name")
"""Keys of the text in an object that is one choice; the second ones where none of the first is there."""

_LETTER_KEYS = ("label", "letter", "key", "id")
"""Keys of a choice's letter in an object that is one choice."""

_IMAGE_KEYS = ("image", "images", "img", "picture", "image_path", "image_url", "bytes")
_RIGHT_KEYS = ("correct", "is_correct", "iscorrect", "is_answer", "is_right", "right")
"""Keys that say whether a choice is the right one, as the answer does."""

_MARK = re.compile(
    r"(?:(?<=\s)|(?<=[,;|])|^)(?:\(([A-Za-z]|\d{1,2})\)|\[([A-Za-z]|\d{1,2})\]|([A-Za-z])[.):](?![A-Za-z]\.)|(\d{1,2})[.):](?!\d))\s*"
)
"""What stands before a choice in a text: `A.`, `b)`, `(3)`, `[C]`."""

_LEAD = re.compile(r"(?:the|answer|answers|option|options|choice|choices|are|\W)*", re.IGNORECASE)
"""What may stand before the first mark."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """What a value lists; nothing where it lists no choices."""

    texts: tuple[str, ...] = ()
    """One for each place, empty where it holds none: the others keep their letters. The last one is not empty."""
    letters: tuple[str, ...] = ()
    """What the data calls each, where it says so; otherwise A, B, C, ... in order."""
    first: int | None = None
    """The number of the first place, where the data calls its choices by numbers."""
    refused: str = ""
    """Why they cannot be shown as they are meant."""


def read_choices(value: Any, ignored: Collection[str] = ()) -> Listed:
    """Return what a value lists.

    Args:
        value: as the row holds it.
        ignored: keys of objects that are left out.
    """
    if isinstance(value, str):
        return _read_text(value.strip(), ignored)
    if isinstance(value, Mapping):
        return _read_object(value, ignored)
    if isinstance(value, list | tuple):
        return _read_list(value, ignored)
    return Listed() if says_nothing(value) else place_choices([value])


def place_choices(values: Sequence[Any], names: Sequence[Any] = (), *, refused: str = "") -> Listed:
    """Return texts at their places, with what the data calls them.

    Args:
        values: texts or numbers; nothing where a place is empty.
        names: letters or numbers of all places, or what is neither, which says nothing.
        refused: as of `Listed`.
    """
    texts = _as_texts(values)
    if any(looks_like_image(value) for value in values if not is_empty(value)):
        refused = refused or "they are images, which are not shown as choices"
    plain = [str(name).strip().upper() for name in names]
    letters: tuple[str, ...] = ()
    first: int | None = None
    if len({*plain}) == len(plain) == len(texts):
        if all(re.fullmatch(r"[A-Z]", name) for name in plain):
            letters = tuple(plain)
        elif (numbers := _counted(plain)) is not None:
            first = min(numbers)
            numbered = dict(zip(numbers, texts, strict=True))
            texts = [numbered.get(number, "") for number in range(first, max(numbers) + 1)]
    count = max((place for place, text in enumerate(texts, start=1) if text), default=0)
    return _without_marks(
        Listed(texts=tuple(texts[:count]), letters=letters[:count], first=first if count else None, refused=refused)
    )


def _counted(names: Sequence[str]) -> list[int] | None:
    """Return names as the numbers of places; None where they are others, or count from neither 0 nor 1."""
    if not all(re.fullmatch(r"[0-9]{1,2}", name) for name in names):
        return None
    numbers = [int(name) for name in names]
    return numbers if len({*numbers}) == len(numbers) and min(numbers, default=-1) in (0, 1) else None


def is_empty(value: Any) -> bool:
    """Tell whether a place holds no choice. A text such as `null` is one, and so is false."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value)) or value in ([], {}, ())


def letters_for(count: int) -> tuple[str, ...]:
    """Return A, B, C, ..."""
    return tuple(chr(ord("A") + place) for place in range(count))


def _as_texts(values: Sequence[Any]) -> list[str]:
    """Return values as texts. Whole numbers that a table stores as fractions are written without a point."""
    fractions = [value for value in values if isinstance(value, float) and math.isfinite(value)]
    whole = all(value.is_integer() for value in fractions)
    numbers = [int(v) if whole and isinstance(v, float) and math.isfinite(v) else v for v in values]
    return [
        "" if is_empty(value) else str(value) if isinstance(value, str | int | float) else short(value)
        for value in numbers
    ]


def _without_marks(listed: Listed) -> Listed:
    """Leave out letters that the texts begin with and that are theirs anyway (`A. cup`, `(B) fork`)."""
    letters = listed.letters or letters_for(len(listed.texts))
    marks = [_MARK.match(text) if text else None for text in listed.texts]
    filled = [(mark, letter) for mark, letter, text in zip(marks, letters, listed.texts, strict=True) if text]
    if len(filled) < 2 or any(mark is None or _name_in(mark) != letter for mark, letter in filled):
        return listed
    texts = tuple(text if mark is None else text[mark.end() :] for mark, text in zip(marks, listed.texts, strict=True))
    return (
        replace(listed, texts=texts) if all(text for text, mark in zip(texts, marks, strict=True) if mark) else listed
    )


def _name_in(mark: re.Match[str]) -> str:
    return next(name for name in mark.groups() if name is not None).upper()


def _read_list(values: Sequence[Any], ignored: Collection[str]) -> Listed:
    if not any(isinstance(value, Mapping) for value in values):
        nested = any(isinstance(value, list | tuple) and value for value in values)
        return place_choices(values, refused="they are lists of their own" if nested else "")
    items = [_read_item(value, ignored) if isinstance(value, Mapping) else (None, value, "") for value in values]
    names = [name for name, _, _ in items]
    # Numbers are rows of a table rather than what an answer counts by.
    letters = names if all(isinstance(name, str) and name.strip().isalpha() for name in names) else []
    refused = next((why for _, _, why in items if why), "")
    return place_choices([text for _, text, _ in items], letters, refused=refused)


def _read_item(item: Mapping[str, Any], ignored: Collection[str]) -> tuple[Any, Any, str]:
    """Return an object's letter and text as one choice, and why it cannot be shown."""
    held = {key: value for key, value in item.items() if key not in ignored}
    keys = [key for key in _TEXT_KEYS if key in held] or [key for key in _NAME_KEYS if key in held]
    key = next((key for key in keys if not is_empty(held[key])), keys[0] if keys else None)
    named = next((name for name in _LETTER_KEYS if name != key and name in held), None)
    if any(name.casefold() in _IMAGE_KEYS and not says_nothing(value) for name, value in held.items()):
        return held.get(named or ""), held.get(key or ""), "they hold images, which are not shown as choices"
    others = [
        name
        for name, value in held.items()
        if name not in (key, named)
        and not (says_nothing(value) or value == held.get(key or ""))
        and not (holds_nothing(name, value, key=True) or name.casefold() in _RIGHT_KEYS)
    ]
    refused = f"{quoted(others)} of them is not read (--ignore_keys {' '.join(others)} leaves it out)" if others else ""
    if key is None and any(not is_empty(value) for value in held.values()):
        refused = f"an object with {quoted(held)} has no text (write it as 'text')"
    return held.get(named or ""), held.get(key or ""), refused


def _read_object(value: Mapping[str, Any], ignored: Collection[str]) -> Listed:
    """Read {"A": "cup", "B": "fork"}, or {"label": ["A", "B"], "text": ["cup", "fork"]}."""
    lists = {key: items for key, items in value.items() if isinstance(items, list | tuple) and key not in ignored}
    if any(_one_of(key) in (*_TEXT_KEYS, *_NAME_KEYS) for key in lists):
        columns = {_one_of(key): items for key, items in lists.items() if items}
        if len({len(items) for items in columns.values()}) > 1:
            return Listed(refused=f"the lists of {quoted(lists)} have different lengths")
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        rest = {key: one for key, one in value.items() if key not in lists}
        return _read_list([{**row, **rest} for row in rows], ignored)
    named = {key: (place_of(str(key)), one) for key, one in value.items() if key not in ignored}
    strange = [key for key, (place, one) in named.items() if place is None and not is_empty(one)]
    kept = [(place, one) for key, (place, one) in named.items() if place is not None or key in strange]
    refused = f"their keys {quoted(strange)} are neither letters nor numbers" if strange else ""
    inner = [_read_item(one, ignored) if isinstance(one, Mapping) else (None, one, "") for _, one in kept]
    refused = next((why for _, _, why in inner if why), refused)
    return place_choices([text for _, text, _ in inner], [place for place, _ in kept], refused=refused)


def _one_of(key: str) -> str:
    return key.removesuffix("s")


def place_of(name: str) -> str | None:
    """Return the letter or number of a name that holds one choice (`A`, `2`, `option_b`); None where it says none."""
    plain = name.strip().casefold()
    if re.fullmatch(r"[a-z]|[0-9]{1,2}", plain):
        return plain
    found = ONE_EACH.fullmatch(plain)
    return None if found is None else found[2] or found[4] or found[6]


def _read_text(text: str, ignored: Collection[str]) -> Listed:
    """Read JSON, what Python or numpy writes, or choices that each stand behind a mark or on a line of their own."""
    if says_nothing(text) or text == NOTHING:
        return Listed()
    value = _parsed(text)
    if value is not None:
        return read_choices(value, ignored)
    marked = _read_marked(text)
    if marked is not None:
        return marked
    if text[0] + text[-1] in ("[]", "{}"):
        return place_choices([text], refused="they are no list that can be read (write it as JSON)")
    for between in (r"[\r\n]+", r"\|", r";", r","):
        pieces = [piece.strip() for piece in re.split(between, text)]
        if pieces[0] == pieces[-1] == "":
            pieces = pieces[1:]
        if sum(map(bool, pieces)) > 1:
            return place_choices(pieces)
    return place_choices([text])


def _read_marked(text: str) -> Listed | None:
    """Return the choices behind their marks; None where no mark begins them."""
    marks = [*_MARK.finditer(text)]
    if not marks or _LEAD.fullmatch(text[: marks[0].start()]) is None:
        return None
    kind = _name_in(marks[0]).isdigit()
    marks = [mark for mark in marks if _name_in(mark).isdigit() == kind]
    lines = [mark for mark in marks if not text[: mark.start()].rpartition("\n")[2].strip()]
    marks = lines if len(lines) > 1 and lines[0] == marks[0] else marks
    if [_number_of(mark) for mark in marks] != sorted({_number_of(mark) for mark in marks}):
        # `A. vitamin C. B. iron`: a mark is the one behind the last
        counted = marks[:1]
        for mark in marks[1:]:
            counted += [mark] if _number_of(mark) == _number_of(counted[-1]) + 1 else []
        marks = counted
    if len(marks) == 1 and (_name_in(marks[0]) not in ("A", "0", "1") or not text[: marks[0].end()][-1:].isspace()):
        return None  # `e.g.`, `a.m.`
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    pieces = [text[mark.end() : end].strip(" \t\r\n,;|") for mark, end in zip(marks, ends, strict=True)]
    return place_choices(pieces, [_name_in(mark) for mark in marks])


def _number_of(mark: re.Match[str]) -> int:
    name = _name_in(mark)
    return int(name) if name.isdigit() else ord(name)


def _parsed(text: str) -> Any:
    """Return what a text writes as an object or list; None where it is no such thing."""
    if text[:1] not in ("{", "[", "("):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = written_list(text) or _as_code(text)
    return value if isinstance(value, Mapping | list | tuple) else None


_NOT_TEXT = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\}\s+\{""", re.DOTALL)
_NUMBERS = re.compile(r"\[\s*[-+0-9.eE]+(?:\s+[-+0-9.eE]+)*\s*\]")


def _as_code(text: str) -> Any:
    """Return what Python or numpy writes; numpy puts no commas between numbers or objects."""
    if _NUMBERS.fullmatch(text):
        text = re.sub(r"\s+", ", ", text.strip("[] \r\n\t")).join("[]")
    text = _NOT_TEXT.sub(lambda found: "}, {" if found[0].startswith("}") else found[0], text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unknown escapes such as \d
            return ast.literal_eval(_Plain().visit(ast.parse(text, mode="eval")))
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


class _Plain(ast.NodeTransformer):
    """Replaces numpy's arrays and numbers (`array([...], dtype=object)`) by what they hold, and `nan` by nothing."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        known = name in ("array", "str_", "float64", "float32", "int64", "int32", "bool_")
        inner: ast.AST = self.visit(node.args[0]) if known and node.args else node
        return inner

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(value=None) if node.id in ("nan", "null") else node


def filled(texts: Iterable[str]) -> list[str]:
    """Return the texts of places that hold one."""
    return [text for text in texts if text]
