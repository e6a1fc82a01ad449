"""What a row holds and training would not read: such a row is refused, so that nothing in it is passed over.

1. Sound and video next to a row's text, which no model here is shown. A mere name of a file is refused nowhere.
2. Keys of a turn in addition to role and text. A mark of whether an answer is trained on is read. What belongs to an
   answer and that no template is given here, such as the call of a tool or a reasoning text, is refused.
3. Marks in a text that stand for boxes or names of another column and that nothing has filled in (`grounding`).
4. Choices that a row lists apart from its question, which a mere letter as the answer means nothing without: in one
   column (`choices`, `options`), as a list, an object by letter, or text with a mark before each, or in a column for
   each (`A`, `B`, `C`; `choice_a`, `choice_b`; `option_1`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_lora.data.conversation import Role, Turn
from vlm_lora.data.conversations.texts import texts_in, written_list
from vlm_lora.data.formats.rows import Row
from vlm_lora.data.images.values import is_missing
from vlm_lora.data.wording import joined, quoted, short
from vlm_lora.errors import DataError

MEDIA_COLUMNS = ("video", "videos", "audio", "audios")
"""Columns that may hold media."""

_MEDIA_KEYS = ("bytes", "path", "url", "array")
"""Keys of an object that hold a medium, or say where it lies."""

_MARKS = ("<video>", "<audio>")
"""What a text says where it means a medium."""

_PLACE = re.compile(
    r"[a-z][a-z0-9+.-]*://.*|data:(?:audio|video)/.*|.*\."
    r"(?:mp4|m4v|mov|avi|mkv|webm|mpe?g|wmv|flv|3gp|ogv|wav|mp3|flac|ogg|oga|opus|m4a|aac|wma|aiff?)",
    re.IGNORECASE | re.DOTALL,
)
"""A URL, or a path that ends as files of film and sound do."""


def refuse_media(row: Row, text_columns: Iterable[str]) -> None:
    """Refuse a row with sound or video: without it the question has no sense.

    Args:
        row: values by column.
        text_columns: the columns that are read; in one of these names they hold text, and their texts may speak of
            media.

    Raises:
        DataError: names the column.
    """
    read = frozenset(text_columns)
    for column, value in row.items():
        if column.casefold() not in MEDIA_COLUMNS or column in read or _says_nothing(value):
            continue
        texts = texts_in([row.get(c) for c in read])
        if _is_medium(value) or any(mark in text for text in texts for mark in _MARKS):
            text = short(value) if isinstance(value, str | int | float) else f"a value of type {type(value).__name__}"
            raise DataError(
                f"The column '{column}' holds {text}; sound and video are not read. Leave the row out, or the "
                "column where the row does without it."
            )


def _says_nothing(value: Any) -> bool:
    return is_missing(value) or (isinstance(value, list | tuple) and all(map(is_missing, value)))


def _is_medium(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(not is_missing(value.get(key)) for key in _MEDIA_KEYS)
    if isinstance(value, list | tuple):
        return any(map(_is_medium, value))
    if isinstance(value, str):
        return _PLACE.fullmatch(value.strip()) is not None
    return isinstance(value, bytes | bytearray | memoryview)


MARKS = (
    *("weight", "loss", "loss_mask", "loss_weight", "loss_scale"),
    *("train", "training", "trainable", "train_on_turn", "supervised"),
)
"""Keys (case does not count) that say whether a turn is trained on: 1 or true, 0 or false."""

_OTHER_MARKS = ("mask", "masked", "train_detail", "training_detail")
"""Keys that say so in ways that differ between tools, or for parts of a text."""

_CALLS = ("tool_calls", "tool_call", "function_call")
_REASONING = ("reasoning_content", "reasoning", "reasoning_details", "thinking", "thought", "thoughts", "refusal")
_IMAGES = ("image", "images", "image_url", "image_urls", "image_path", "picture", "pictures")
_MEDIA = ("video", "videos", "audio", "audios")
_TOOLS = ("tools", "functions")

_CURES: Mapping[tuple[str, ...], str] = {
    (*_CALLS, *_REASONING): "Write it into the turn's text as the model is to write it, or leave the key out.",
    _TOOLS: "Write the tools into the system turn's text, or leave the key out.",
    _IMAGES: 'Write it as a part of the turn: [{"type": "image", "image": ...}, {"type": "text", "text": ...}].',
    _MEDIA: "Sound and video are not read: leave the row out, or the key where the row does without it.",
    _OTHER_MARKS: 'Write "weight": 0 into each answer that is not to be trained on.',
}
"""Keys of a turn that are not read, and what to do about them."""

_HARMLESS = (
    *("role", "content", "from", "value", "name", "id", "type", "index", "timestamp", "created", "created_at"),
    *("date", "lang", "language", "model", "status", "finish_reason", "stop_reason", "tool_call_id", *MARKS),
)
"""Keys that hold no part of what an answer says."""


def says_nothing(value: Any) -> bool:
    """Tell whether a value is there in name only: null, false, NaN, empty, or nothing but such values inside."""
    if isinstance(value, Mapping):
        return all(says_nothing(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return all(says_nothing(inner) for inner in value)
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    return value is None or value is False or (isinstance(value, float) and math.isnan(value))


def refuse_unread_keys(turn: Mapping[str, Any]) -> None:
    """Refuse a turn with a key that is not read and holds something.

    Raises:
        DataError: names the key and what to do.
    """
    for key, value in turn.items():
        cure = next((cure for keys, cure in _CURES.items() if key.casefold() in keys), None)
        silent = value is None if key.casefold() in _OTHER_MARKS else says_nothing(value)
        if cure is not None and not silent:
            raise DataError(f"its '{key}' ({short(value)}) is not read. {cure}")


def refuse_other_text(turn: Mapping[str, Any]) -> None:
    """Refuse an answer without text whose turn holds other keys: it may lie there.

    Raises:
        DataError: names them.
    """
    others = [key for key, value in turn.items() if key.casefold() not in _HARMLESS and not says_nothing(value)]
    if others:
        raise DataError(
            f"its text is empty, and it has other keys ({quoted(others)}), which are not read. Write what it says as "
            "its text, or leave them out: the model would learn to say nothing."
        )


def read_mark(given: Mapping[str, Any], role: Role) -> bool | None:
    """Return whether a turn, or a part of one, is marked to be trained on; None where it has no mark.

    Raises:
        DataError: a mark that is neither on nor off, marks that contradict each other, or one that asks to train on
            what is no answer.
    """
    marks = {key: value for key, value in given.items() if key.casefold() in MARKS and value is not None}
    for key, value in marks.items():
        if isinstance(value, str | bytes) or value not in (0, 1):
            raise DataError(
                f"its '{key}' is {short(value)}. A mark of what is trained on is 0 or 1, or false or true; shares "
                "are not read."
            )
    if len({bool(value) for value in marks.values()}) > 1:
        raise DataError(f"its marks {quoted(marks)} say both that it is trained on and that it is not. Leave one out.")
    wanted = next((bool(value) for value in marks.values()), None)
    if wanted and role != "assistant":
        raise DataError(
            f"its '{next(iter(marks))}' asks to train on it, and only answers are trained on. Leave the mark out "
            "there, or set it to 0."
        )
    return wanted


def refuse_unread_columns(row: Mapping[str, Any], read: Iterable[str], *, chat: bool) -> None:
    """Refuse a row with a column that belongs to its turns and is not read: tools, calls, reasoning, marks of turns.

    Args:
        row: values by column.
        read: the columns that are read.
        chat: whether the row is a chat: in addition to a question and an answer `tools` may be anything that names no
            functions, and in addition to an answer a column of reasons says nothing about what the model is to write.

    Raises:
        DataError: names the column and what to do.
    """
    taken = frozenset(read)
    for column, value in row.items():
        name = column.casefold()
        if column in taken or says_nothing(value):
            continue
        if name in _TOOLS and (chat or _defines_functions(value)):
            cure = "Write the tools into the system turn's text, or leave the column out."
        elif name in _CALLS or name == "reasoning_content":
            cure = "Write it into the answer's text as the model is to write it, or leave the column out."
        elif chat and name in (*MARKS, *(f"{mark}s" for mark in MARKS)) and isinstance(value, list | tuple):
            cure = 'Write "weight": 0 into each turn that is not to be trained on, and leave the column out.'
        else:
            continue
        raise DataError(f"The column '{column}' ({short(value)}) belongs to the turns and is not read. {cure}")


def _defines_functions(value: Any) -> bool:
    """Tell whether a value defines functions, as a list or as text of one."""
    if isinstance(value, str):
        return '"function"' in value or ('"name"' in value and '"parameters"' in value)
    items = value if isinstance(value, list | tuple) else [value]
    return any(
        isinstance(item, Mapping)
        and ("function" in item or ("name" in item and not item.keys().isdisjoint(_OF_FUNCTIONS)))
        for item in items
    )


_OF_FUNCTIONS = ("parameters", "input_schema", "arguments", "description")
"""Keys in addition to a function's name."""


_BOX_MARK = re.compile(r"<(bbox|ref-object|ref_object|box|ref|quad|polygon|point)>")
_BOX_COLUMNS = ("objects", "object", "grounding", "bbox", "bboxes", "box", "boxes", "ref", "refs", "regions", "points")
"""Columns (case does not count) that hold what such marks stand for."""


def refuse_box_marks(row: Mapping[str, Any], turns: Sequence[Turn]) -> None:
    """Refuse a row whose texts have marks for boxes, rather than train on the marks as they are.

    A mark with its end (`<box>` and `</box>`) is a model's own way to write boxes and stays text, and so does any
    mark in a longer text of a row without such a column.

    Args:
        row: values by column.
        turns: what became of it.

    Raises:
        DataError: names the marks and the column.
    """
    held = [column for column, value in row.items() if column.casefold() in _BOX_COLUMNS and not says_nothing(value)]
    for number, turn in enumerate(turns, start=1):
        marks = [mark for mark in dict.fromkeys(_BOX_MARK.findall(turn.text)) if f"</{mark}>" not in turn.text]
        alone = turn.role == "assistant" and not re.search(r"\w", _BOX_MARK.sub("", turn.text))
        if marks and (held or alone):
            what = f"the column {quoted(held)}" if held else "a column such as 'objects', which the row does not have"
            raise DataError(
                f"Turn {number} ({turn.role}) holds {joined(f'<{mark}>' for mark in marks)}, which stands for a "
                f"value of {what}; such marks are filled in from a column 'objects' of "
                '{"ref": [...], "bbox": [...]} alone. Write the boxes or names themselves into the text, as the model '
                "is to read or write them."
            )


CHOICE_COLUMNS = (
    *("choices", "options", "candidates", "choice", "option", "answer_choices", "answer_options"),
    *("multiple_choices", "multiple_choice_options", "choice_list", "option_list", "possible_answers"),
)
"""Columns (case does not count) that list what may be answered."""

_ONE_EACH = re.compile(r"(?:choice|option|opt|answer|candidate|alternative|ending)s?[ _.-]?([a-z]|[0-9]{1,2})|([a-j])")
"""Names of columns that hold one choice each, in small letters."""

_TEXT_KEYS = ("text", "value", "content", "choice", "option", "answer", "label", "name")
"""Keys of the text in an object that is one choice; the first that is there counts."""

_CHOICE_MARK = re.compile(
    r"(?:(?<=\s)|(?<=[,;|])|^)(?:\(?[A-Za-z0-9]{1,2}[.):]|\([A-Za-z0-9]{1,2}\)|\[[A-Za-z0-9]{1,2}\])\s*"
)
"""What stands before a choice in a text: `A.`, `b)`, `(3)`, `[C]`."""

_EDGE = r"(?:(?<!\w)|(?!\w))"
"""No place inside a word or a number: 12 does not show the choice 2. Only of ASCII: others may write without spaces."""

_LEAD = re.compile(
    r"(?:the|correct|right|best|final|answer|answers|option|options|choice|choices|letter|is|are|and|or|\W)+"
)
"""Words around a choice's letter that say no more than it, in small letters."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What may be answered, and the columns that say so."""

    columns: tuple[str, ...]
    texts: tuple[str, ...]
    letters: tuple[str, ...] = ()
    """What the data calls each, where it says so; otherwise A, B, C, ... in order."""

    def lettered(self) -> Mapping[str, str]:
        """Return the texts by their letters."""
        letters = self.letters or map(chr, range(ord("A"), ord("A") + len(self.texts)))
        return dict(zip(letters, self.texts, strict=True))

    def has(self, answer: str) -> bool:
        """Tell whether an answer is one of them, or says letters that they have, however dressed (`(B)`, `A, C`)."""
        if answer.strip().casefold() in (text.strip().casefold() for text in self.texts):
            return True
        return bool(told := _letters_of(answer)) and told <= {*self.lettered()}


def listed_choices(row: Mapping[str, Any], taken: Iterable[str]) -> Iterator[Choices]:
    """Yield what a row lists as its choices, but for what the given columns hold."""
    others = frozenset(taken)
    free = [column for column in row if column not in others]
    for column in free:
        if column.casefold() in CHOICE_COLUMNS and (texts := tuple(_texts_of(row[column]))):
            yield Choices(columns=(column,), texts=texts, letters=_letters_in(row[column], len(texts)))
    groups: dict[str, dict[str, str]] = {}
    for column in free:
        found = _ONE_EACH.fullmatch(column.casefold())
        if found is not None and isinstance(row[column], str | int | float) and not says_nothing(row[column]):
            place = found.group(1) or found.group(2)
            groups.setdefault(column.casefold()[: -len(place)], {})[place] = column
    for group in groups.values():
        if len(group) > 1 and not group.keys().isdisjoint(("a", "0", "1")):
            columns = tuple(group[place] for place in sorted(group, key=_in_order))
            letters = tuple(place.upper() for place in sorted(group, key=_in_order) if place.isalpha())
            texts = tuple(str(row[column]) for column in columns)
            yield Choices(columns=columns, texts=texts, letters=letters if len(letters) == len(texts) else ())


def _in_order(place: str) -> tuple[int, str]:
    """Sort letters, and numbers by their size."""
    return len(place), place


def hidden(answer: str, choices: Choices, question: str) -> bool:
    """Tell whether an answer only says which of the choices is right, and the question does not show them all."""
    return _is_place(answer, choices.texts) and not all(_shows(question, text) for text in choices.texts)


def refuse_hidden(row: Mapping[str, Any], taken: Iterable[str], *, question: str, answer: str) -> None:
    """Refuse a row whose answer only says which of its choices is right, where the question does not show them.

    Args:
        row: values by column.
        taken: the columns that are read.
        question: all that is said before the answer.
        answer: what is trained on.

    Raises:
        DataError: names the columns and what to do.
    """
    for choices in listed_choices(row, taken):
        if hidden(answer, choices, question):
            raise DataError(
                f"The answer is {short(answer)}, which says one of {quoted(choices.columns)} "
                f"({short([*choices.texts])}), and the question does not show them all. Write them into the question, "
                "or the right one's text as the answer. A column of answers that is named by --response_column, or a "
                "chat by --messages_column, is trained on as it is."
            )


def show_choices(row: Mapping[str, Any], taken: Iterable[str], *, question: str, answer: str) -> str:
    """Return a question with the row's choices behind it, where it does not show them and the answer is one of them.

    Args:
        row: values by column.
        taken: the columns that are read.
        question: what is asked.
        answer: what is trained on: a choice's text, or letters of choices. By a number alone it is not clear which is
            meant (some data count from 0, some from 1), and the question stays as it is.
    """
    for choices in listed_choices(row, taken):
        if len(choices.texts) <= _MOST and choices.has(answer) and not all(_shows(question, t) for t in choices.texts):
            question = "\n".join([question, *(f"{letter}. {text}" for letter, text in choices.lettered().items())])
    return question


_MOST = 26
"""Choices that have a letter each."""


def _letters_of(answer: str) -> set[str]:
    """Return the letters that an answer of nothing else says; none where it says anything else, such as a number."""
    stripped = answer.strip()
    if re.fullmatch(r"[A-J]{2,}", stripped):
        return set(stripped)
    told = _told_by(stripped)
    return {piece.upper() for piece in told} if told and all(len(p) == 1 and p.isalpha() for p in told) else set()


def _told_by(answer: str) -> list[str]:
    """Return the words and numbers of an answer that say which choice it is, without those around them."""
    pieces = re.split(r"[^\w.]+|\.(?!\d)|(?<!\d)\.", answer)
    return [piece for piece in pieces if piece and _LEAD.fullmatch(piece.casefold()) is None]


def _letters_in(value: Any, count: int) -> tuple[str, ...]:
    """Return the letters by which a value names its choices, as keys or next to them; none where it names none."""
    named: Any = ()
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, Mapping):
        inner = next((value[key] for key in _LETTER_KEYS if isinstance(value.get(key), list | tuple)), None)
        named = inner if inner is not None else list(value)
    elif isinstance(value, list | tuple) and all(isinstance(item, Mapping) for item in value):
        named = [next((item[key] for key in _LETTER_KEYS if key in item), None) for item in value]
    letters = tuple(str(name).strip().upper() for name in named if re.fullmatch(r"\s*[A-Za-z]\s*", str(name)))
    return letters if len(letters) == count == len(set(letters)) else ()


_LETTER_KEYS = ("label", "labels", "letter", "key", "id")
"""Keys of a choice's letter in an object that is one choice, or that holds lists of letters and texts."""


def _texts_of(value: Any) -> list[str]:
    """Return the choices that one column's value lists, as texts."""
    if says_nothing(value):
        return []
    if isinstance(value, str):
        return _texts_written(value)
    if isinstance(value, Mapping):
        # {"A": "cup", "B": "fork"}, or {"label": ["A", "B"], "text": ["cup", "fork"]}
        inner = next((value[key] for key in _TEXT_KEYS if isinstance(value.get(key), list | tuple)), None)
        return _texts_of(inner if inner is not None else list(value.values()))
    if not isinstance(value, list | tuple):
        return [str(value)]
    return [text for item in value if not says_nothing(item) for text in [_text_of(item)]]


def _text_of(item: Any) -> str:
    if isinstance(item, Mapping):
        item = next((item[key] for key in _TEXT_KEYS if isinstance(item.get(key), str | int | float)), None) or item
    return item if isinstance(item, str) else short(item)


def _texts_written(text: str) -> list[str]:
    """Return the choices that a text lists: JSON, a list as Python writes it, or each behind a mark or on a line."""
    items = written_list(text)
    if items is not None:
        return [item for item in items if item.strip()]
    value = _parsed(text)
    if value is not None:
        return _texts_of(value)
    marked = [piece.strip(" \t\r\n,;|") for piece in _CHOICE_MARK.split(text)]
    marked = [piece for piece in marked if piece]
    if len(marked) > 1 or _CHOICE_MARK.match(text.strip()):
        return marked
    for between in (r"[\r\n]+", r"\s*\|\s*", r"\s*;\s*", r"\s*,\s*"):
        pieces = [piece for piece in re.split(between, text.strip()) if piece.strip()]
        if len(pieces) > 1:
            return pieces
    return [text.strip()]


def _parsed(text: str) -> Any:
    """Return what a text writes as a JSON object or list; None where it is no such thing."""
    if text.strip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _shows(text: str, choice: str) -> bool:
    return re.search(f"{_EDGE}{re.escape(choice.strip())}{_EDGE}", text, re.ASCII | re.IGNORECASE) is not None


def _is_place(answer: str, choices: tuple[str, ...]) -> bool:
    """Tell whether an answer is numbers or letters of choices, however dressed (`B`, `(b)`, `Option 2.`, `A, C`)."""
    if answer.strip().casefold() in (choice.strip().casefold() for choice in choices):
        return False
    stripped = answer.strip()
    if re.fullmatch(r"[A-J]{2,}", stripped) and len(stripped) <= len(choices):
        return max(map(ord, stripped)) - ord("A") < len(choices) and list(stripped) == sorted(set(stripped))
    told = _told_by(stripped)
    return bool(told) and all(
        (len(piece) == 1 and piece.isalpha()) or re.fullmatch(r"\d+(\.0*)?", piece) is not None for piece in told
    )


def asked_text(*values: Any) -> str:
    """Return all texts of what asks, each on a line: a question may be a chat."""
    return "\n".join(texts_in(list(values)))
