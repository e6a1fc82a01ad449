"""The columns and first rows of a split, questions about them, the mapping that a user set, and the images' column.

Which column holds the images is found from names and from the first rows' values; nothing is decoded.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.columns.names import (
    COLUMN_NAMES,
    IMAGE_PARTS,
    SHOWN_BY_KEY,
    TURN_KEYS,
    ColumnRole,
    role_of_name,
)
from vlm_lora.data.conversation import RowSource
from vlm_lora.data.conversations.texts import IMAGE_TAG, parse_turns, texts_in
from vlm_lora.data.formats.rows import Row, Rows
from vlm_lora.data.images.numbers import NAMES as ID_NAMES
from vlm_lora.data.images.numbers import is_known_id
from vlm_lora.data.images.values import ADDRESS_KEYS, is_missing, is_number_array, looks_like_image
from vlm_lora.data.wording import quoted, short
from vlm_lora.errors import DataError, nearest

SAMPLE = 100
"""Rows that detection looks at."""

NO_PICTURES = "no_pictures"
"""Given as --image_column: the rows are text only. (`none` is a flag that is not given.)"""


@dataclass(frozen=True, kw_only=True)
class ColumnSearch:
    """The columns and first rows of one split, and questions about them."""

    columns: tuple[str, ...]
    sample: Sequence[Row]
    where: str
    place: Callable[[int], RowSource]
    """Where a row of the sample lies."""
    quiet: bool = False
    """Whether nothing is to be warned of."""

    def values(self, column: str) -> list[Any]:
        """Return the values of a column that are not null."""
        return [row[column] for row in self.sample if row.get(column) is not None]

    def mostly_holds(self, column: str, test: Callable[[Any], bool]) -> bool:
        """Tell whether more than half of a column's values that say anything pass a test: the others are odd rows."""
        telling = [value for value in self.values(column) if not is_missing(value)]
        return sum(test(value) for value in telling) * 2 > len(telling)

    def may_hold(self, column: str, test: Callable[[Any], bool]) -> bool:
        """Tell whether any value of a column passes a test, or none says anything."""
        telling = [value for value in self.values(column) if not is_missing(value)]
        return not telling or any(test(value) for value in telling)

    def has_chat(self, column: str) -> bool:
        """Tell whether any value is a chat: one odd row must not hide what the column is."""
        pairs = role_of_name(column) == "messages"
        return any(parse_turns(value, pairs=pairs) is not None for value in self.values(column))

    def named(self, role: ColumnRole) -> list[str]:
        """Return the columns that are called as a role usually is; fallback names only where no other is."""
        names = COLUMN_NAMES[role]
        usual = [column for column in self.columns if column.casefold() in names.usual]
        return usual or [column for column in self.columns if column.casefold() in names.fallback]

    def holding_the_others(self, columns: Sequence[str]) -> list[str]:
        """Return the column whose text holds that of all others in each row, alone; all of them where there is none.

        Some data have a question in short, and next to it as it is asked, with its choices and what form the answer
        is to have.
        """

        def holds(column: str) -> bool:
            rows = [[row.get(c) for c in (column, *columns)] for row in self.sample]
            pairs = [(texts[0], text) for texts in rows for text in texts]
            inside = all(isinstance(whole, str) and isinstance(text, str) and text in whole for whole, text in pairs)
            return inside and any(whole != text for whole, text in pairs)

        found = [column for column in columns if self.sample and holds(column)]
        return found[:1] or [*columns]

    def odd_rows(self, columns: Sequence[str]) -> str:
        """Say which of the columns only a few rows have, and the first of those; empty where none is such.

        A file with columns for one thing twice is most often one whose rows were written in two ways.
        """
        there = {
            column: [at for at, row in enumerate(self.sample) if row.get(column) is not None] for column in columns
        }
        rare = {column: found for column, found in there.items() if found and len(found) * 2 < len(self.sample)}
        said = (
            f" Only {len(found)} of the first {len(self.sample)} rows have '{column}', such as {self.place(found[0])}."
            for column, found in rare.items()
        )
        return "".join(said)

    def single(self, role: ColumnRole, candidates: Sequence[str], otherwise: str = "") -> str:
        """Return the only candidate.

        Args:
            role: what it is.
            candidates: the columns that it could be.
            otherwise: what else may be typed where there is none.

        Raises:
            DataError: there are several, or none.
        """
        names = COLUMN_NAMES[role]
        if len(candidates) > 1:
            raise DataError(
                f"{self.where} has {len(candidates)} columns that could be the {role}: "
                f"{quoted(candidates)}.{self.odd_rows(candidates)} "
                f"Type {names.flag} with the one you mean, for example {names.flag} {candidates[0]}."
            )
        if not candidates:
            raise DataError(
                f"{self.where}: no column could be taken as the {role}. It has {quoted(self.columns)}. Known names "
                f"are {', '.join(names.usual + names.fallback)}, or a chat in one column "
                f"({', '.join(COLUMN_NAMES['messages'].usual)}). Type {names.flag} COLUMN{otherwise}."
            )
        return candidates[0]


def read_mapping(search: ColumnSearch, config: DataConfig) -> dict[ColumnRole, str]:
    """Return the explicit mapping after checking that its columns are there."""
    given: dict[ColumnRole, str | None] = {
        "image": config.image_column,
        "prompt": config.prompt_column,
        "response": config.response_column,
        "messages": config.messages_column,
        "boxes": config.boxes_column,
        "page": config.page_column,
    }
    mapped = {role: column for role, column in given.items() if column is not None}
    typed = [(role, one) for role, column in mapped.items() for one in named_columns(role, column, search.columns)]
    for role, column in typed:
        if column not in search.columns and not (role == "image" and column == NO_PICTURES):
            raise DataError(
                f"{COLUMN_NAMES[role].flag} {column}: {search.where} has no such "
                f"column.{nearest(column, search.columns)} It has {quoted(search.columns)}."
            )
    if config.context_column is not None and config.context_column not in search.columns:
        raise DataError(
            f"--context_column {config.context_column}: {search.where} has no such "
            f"column.{nearest(config.context_column, search.columns)} It has {quoted(search.columns)}."
        )
    if "messages" in mapped and ("prompt" in mapped or "response" in mapped):
        raise DataError(
            "--messages_column names whole conversations, so it does not go with --prompt_column or "
            "--response_column. Leave one of them out."
        )
    marks = [role for role in ("boxes", "page") if role in mapped]
    beside = {"image", "prompt"} if marks == ["boxes"] else {"image"}  # a column may ask for boxes
    if marks and len(mapped.keys() - beside) > 1:
        raise DataError(
            f"--{marks[0]}_column says what is asked and answered, so it does not go with "
            f"{', '.join(COLUMN_NAMES[role].flag for role in mapped if role not in (*beside, marks[0]))}. "
            "Leave one of them out."
        )
    if config.box_prompt is not None and "prompt" in mapped and "response" not in mapped:
        raise DataError(
            f"--box_prompt and --prompt_column {mapped['prompt']} both say what is asked. Leave one of them out."
        )
    return mapped


def named_columns(role: ColumnRole, column: str, columns: Sequence[str]) -> list[str]:
    """Return the columns that a flag names: several for images, parted by commas, unless one is called so."""
    return column.split(",") if role == "image" and column not in columns else [column]


def where_from(rows: Rows) -> str:
    """Name the files of rows, for messages."""
    files = rows.files
    more = f" (and {len(files) - 1} more)" if len(files) > 1 else ""
    return f"{files[0] if files else 'the data'}{more}"


logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Images:
    """Which column holds them, and why."""

    column: str | None
    """None where there is none."""
    why: str
    more: tuple[str, ...] = ()
    """Further columns, whose images follow."""
    aside: tuple[str, ...] = ()
    """Columns that only say where its images were."""
    either: bool = False
    """Whether a row has its images in one of the columns alone."""
    declined: bool = False
    """Whether the user said that there are no images."""
    by_id: bool = False
    """Whether it names files below --image_root by numbers or without their endings."""


_NUMBERED = re.compile(
    r"(image|img|picture|photo|pic|(?:image|img)_(?:path|file|url|bytes))[ _.-]?(\d{1,2})?", re.IGNORECASE
)
"""Names of columns with one image each, in the order of their numbers; the one without a number comes first."""

_DECODED = re.compile(
    r"(?:decoded|raw|pil)_(?:image|img|picture)|(?:image|img|picture)_(?:pil|raw|data)", re.IGNORECASE
)
"""Names of columns that hold the images whose addresses another column has."""

_PAIRS = (
    *(("left", "right"), ("before", "after"), ("first", "second"), ("top", "bottom"), ("old", "new"), ("a", "b")),
    *(("source", "target"), ("input", "target"), ("front", "back")),
)
"""Words by which the names of two columns differ that hold one image each, in this order."""


def is_numbered(column: str) -> bool:
    """Tell whether a column is called as one of several with one image each."""
    return _NUMBERED.fullmatch(column) is not None


def _series(search: ColumnSearch) -> tuple[str, ...]:
    """Return the columns that hold the images of a row one by one, in order; nothing where no two do, or it is unclear.

    By their names (`image_1`, `image_2`; `left_image`, `right_image`) and because their values are images.
    """
    held = [c for c in search.columns if search.mostly_holds(c, looks_like_image)]
    # One that is empty in the first rows may hold images in later ones.
    empty = [c for c in search.columns if all(map(is_missing, search.values(c)))]
    numbered: dict[str, dict[int, str]] = {}
    for column in (*held, *empty):
        found = _NUMBERED.fullmatch(column)
        if found is not None:
            numbered.setdefault(found[1].casefold(), {})[int(found[2] or 0)] = column
    series = [tuple(columns[at] for at in sorted(columns)) for columns in numbered.values() if len(columns) > 1]
    series += [(one, two) for one in held for two in held if _are_pair(one, two)]
    telling = [one for one in series if not {*one} <= {*empty}]
    return telling[0] if len(telling) == 1 else ()


def _are_pair(one: str, two: str) -> bool:
    words, others = (re.split(r"[ _.-]+", name.casefold()) for name in (one, two))
    differing = [pair for pair in zip(words, others, strict=False) if pair[0] != pair[1]]
    return len(words) == len(others) and len(differing) == 1 and differing[0] in _PAIRS


def find_images(search: ColumnSearch, mapped: str | None, root: str | None = None) -> Images:
    """Find the column of images.

    Args:
        search: the columns.
        mapped: --image_column.
        root: --image_root, below which a column of ids may name files.

    Raises:
        DataError: several columns could be it.
    """
    if mapped == NO_PICTURES and mapped not in search.columns:
        return Images(column=None, why=f"image: none, by --image_column {NO_PICTURES}", declined=True)
    if mapped is not None:
        first, *more = named_columns("image", mapped, search.columns)
        if not more and not search.mostly_holds(first, looks_like_image) and _name_files(search, [first], root):
            why = f"image: column '{first}', named by --image_column: its ids are names of files below {root}"
            return Images(column=first, why=why, by_id=True)
        if not more:
            return Images(column=first, why=f"image: column '{first}', named by --image_column")
        why = f"image: columns {quoted([first, *more])}, in this order, named by --image_column"
        return Images(column=first, more=tuple(more), why=why)
    # A column of another meaning may carry a usual name: a chat is never an image, nor is a number.
    # One odd row must not hide what the column is, or all rows would be text only.
    named = [c for c in search.named("image") if search.may_hold(c, may_be_image)]
    series = _series(search)
    others = [column for column in named if column not in series]
    if series and others:
        raise DataError(
            f"{search.where} has images in {quoted(series)} and in {quoted(others)}. Type --image_column with those "
            f"that a row is to show, in order, for example --image_column {' '.join(series)}."
        )
    if series:
        why = f"image: columns {quoted(series)}, in this order, by their names"
        return Images(column=series[0], more=series[1:], why=why)
    if len(named) > 1 and not any(sum(not is_missing(row.get(c)) for c in named) > 1 for row in search.sample):
        why = f"image: columns {quoted(named)}, of which each row has one, by their names"
        return Images(column=named[0], more=tuple(named[1:]), either=True, why=why)
    held = [c for c in search.columns if (c in named or _DECODED.fullmatch(c)) and search.mostly_holds(c, _is_encoded)]
    others = [column for column in named if column not in held]
    if others and len(held) == 1 and all(search.mostly_holds(c, _is_address) for c in others):
        why = f"image: column '{held[0]}', which holds them; {quoted(others)} says where they were"
        return Images(column=held[0], aside=tuple(others), why=why)
    _refuse_second(search, named)
    if named:
        column = search.single("image", named)
        return Images(column=column, why=f"image: column '{column}', by its name")
    by_value = [c for c in search.columns if search.mostly_holds(c, looks_like_image)]
    if by_value:
        column = search.single("image", by_value)
        why = f"image: column '{column}', because its values are images or names of image files"
        return Images(column=column, why=why)
    ids = _name_files(search, [c for c in search.columns if c.casefold() in ID_NAMES], root)
    if ids and not _brings_images(search):
        column = search.single("image", ids)
        why = f"image: column '{column}', whose ids are names of image files below --image_root {root}"
        return Images(column=column, why=why, by_id=True)
    _refuse_lost(search, root)
    return Images(column=None, why="image: no column")


def has_own_images(turn: Mapping[str, Any]) -> bool:
    """Tell whether a turn has parts with images of their own."""
    parts = [part for _, key in TURN_KEYS if isinstance(turn.get(key), list | tuple) for part in turn[key]]
    return any(isinstance(part, Mapping) and _shows_image(part) for part in parts)


def _shows_image(part: Mapping[str, Any]) -> bool:
    keys = (*IMAGE_PARTS.get(str(part.get("type") or "image"), ()), *SHOWN_BY_KEY)
    return any(not is_missing(part.get(key)) for key in keys)


def _brings_images(search: ColumnSearch) -> bool:
    """Tell whether the first rows' chats or texts have images of their own."""
    chats = (parse_turns(value) or () for row in search.sample for value in row.values())
    if any(has_own_images(turn) for turns in chats for turn in turns):
        return True
    return any(IMAGE_TAG.search(text) for row in search.sample for text in texts_in(row))


def _name_files(search: ColumnSearch, columns: Sequence[str], root: str | None) -> list[str]:
    """Return those of the columns whose values mostly name image files below a folder, without their endings."""
    if root is None:
        return []
    folder = Path(root).expanduser().resolve()
    return [c for c in columns if search.values(c) and search.mostly_holds(c, lambda value: is_known_id(value, folder))]


def _refuse_lost(search: ColumnSearch, root: str | None) -> None:
    """Refuse rows that name images by ids alone where --image_root has most of them not: they would be text only.

    Raises:
        DataError: names the column, an id without a file and what to type.
    """
    if root is None or _brings_images(search):
        return
    folder = Path(root).expanduser().resolve()
    for column in search.columns:
        ids = [value for value in search.values(column) if not is_missing(value)]
        if column.casefold() not in ID_NAMES or not ids:
            continue
        lost = [one for one in ids if not is_known_id(one, folder)]
        raise DataError(
            f"{search.where}: no column holds images, and of the first rows' '{column}' {len(lost)} of {len(ids)} name "
            f"no image file below --image_root {root}, such as {short(lost[0])}. Type --image_root with the folder of "
            f"the images, --image_column COLUMN with the one that names them, or --image_column {NO_PICTURES} to train "
            "on text alone."
        )


def _refuse_second(search: ColumnSearch, named: Sequence[str]) -> None:
    """Refuse other columns of encoded images next to the one that is called so: nobody said that they do not count.

    Names of files are not looked at: next to an image they most often are its own.

    Raises:
        DataError: names them, and what to type.
    """
    others = [
        column
        for column in search.columns
        if len(named) == 1 and column != named[0] and any(map(_is_encoded, search.values(column)))
    ]
    if others:
        raise DataError(
            f"{search.where}: in addition to '{named[0]}' {quoted(others)} hold images. To show them too, in this "
            f"order, type --image_column {' '.join([*named, *others])}; to leave them out, --image_column {named[0]}."
        )


def _is_address(value: Any) -> bool:
    return isinstance(value, str) and looks_like_image(value)


def _is_encoded(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_is_encoded, value))
    return not isinstance(value, str) and looks_like_image(value)


def explain_text_only(search: ColumnSearch, pictures: Images) -> str:
    """Return the line that explains where images come from, in data whose chats bring none of their own.

    Raises:
        DataError: a column is called as images are, and holds none.
    """
    if pictures.column is not None or pictures.declined:
        return pictures.why
    answers = search.named("response")
    asked = ({c: value for c, value in row.items() if c not in answers} for row in search.sample)
    if any(IMAGE_TAG.search(text) for row in asked for text in texts_in(row)):
        return "image: by the texts, which name them as <img>PATH</img>"
    usual = [c for c in search.columns if c.casefold() in COLUMN_NAMES["image"].usual]
    if usual:
        column = usual[0]
        held = next(value for value in search.values(column) if not is_missing(value))
        raise DataError(
            f"{search.where}: the column '{column}' is called as images are, and holds none, such as {short(held)}. "
            'An image is a path, a URL, encoded bytes, base64, a data URI, {"bytes", "path"}, {"url"} or {"src"}. '
            f"It has {quoted(search.columns)}. Type --image_column COLUMN with the one that holds the images, or "
            f"--image_column {NO_PICTURES} to train on text alone."
        )
    if not search.quiet:
        logger.warning(
            "%s: no image column among %s: the rows are text only. If there are images, type --image_column.",
            search.where,
            quoted(search.columns),
        )
    return f"{pictures.why} among {quoted(search.columns)}: the rows are text only"


def may_be_image(value: Any) -> bool:
    """Tell whether a value could be an image in a column that is called as images are."""
    if isinstance(value, list | tuple):
        if is_number_array(value):
            return True
        return all(may_be_image(item) for item in value)
    if isinstance(value, Mapping):
        return any(key in value for key in ("bytes", "path", *ADDRESS_KEYS))
    return not isinstance(value, int | float)
