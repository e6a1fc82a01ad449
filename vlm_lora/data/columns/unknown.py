"""What the first rows hold and training would not read: collected over all files, and refused in one error.

A column, or a key of a turn or part, is read, or is known to hold nothing (`harmless`), or is named by
`--ignore_columns` or `--ignore_keys`. What is null wherever it stands is not there.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.columns.harmless import holds_nothing
from vlm_lora.data.columns.names import MARKS, NOTHING, ColumnRole, role_of_name
from vlm_lora.data.columns.repeated import Repeats
from vlm_lora.data.conversations.choices import asked_text, listed_choices, shows_all
from vlm_lora.data.conversations.texts import parse_turns
from vlm_lora.data.conversations.unread import is_blank, is_refused, unknown_keys
from vlm_lora.data.formats.rows import Row
from vlm_lora.data.images.values import looks_like_image
from vlm_lora.data.ocr.boxes import holds_boxes
from vlm_lora.data.ocr.pages import holds_page
from vlm_lora.data.wording import joined, quoted, short
from vlm_lora.errors import DataError, nearest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Which columns of a row are accounted for without a look at their values."""

    columns: frozenset[str]
    """Those that are read."""
    ignored: tuple[str, ...] = ()
    """Keys that are left out."""
    asks: bool = False
    """Whether a row is a question and an answer in columns, which choices belong to."""
    chat: bool = False
    """Whether a row is a chat, which tools belong to."""
    decided: frozenset[ColumnRole] = frozenset()
    """Roles for which flags name a column: others that could have them are left out, as the flags mean."""

    repeats: Repeats = field(default_factory=Repeats)
    """Columns among these that say again what others say."""

    def accounts_for(self, column: str, value: Any) -> bool:
        """Tell whether a column is read, or may be left out without a word."""
        if column in self.columns or holds_nothing(column, value) or is_blank(value) or value == NOTHING:
            return True
        if column.casefold() in MARKS and (value is True or value == 1):
            return True  # it is trained on
        role = role_of_name(column)
        if role in self.decided or (role == "image" and isinstance(value, int)):  # a number names no image
            return True
        if "image" in self.decided and looks_like_image(value):
            return True
        marked = parse_turns(value) is not None or holds_boxes(value) or holds_page(value, column)
        return "messages" in self.decided and marked


@dataclass(frozen=True, kw_only=True)
class Unknown:
    """Names that are neither read nor known to hold nothing, each with a value that it has."""

    where: str = ""
    """The file or files."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)
    """Of turns, parts, boxes and OCR pages."""


def find_unknown(
    where: str, sample: Sequence[Row], reading: Reading, chats: Iterable[Any], marks: Iterable[tuple[str, Any]] = ()
) -> Unknown:
    """Return what nobody reads of the first rows.

    Args:
        where: what messages call the files.
        sample: the rows, without what is ignored.
        reading: what is accounted for.
        chats: all lists of turns in them.
        marks: keys of their boxes and OCR pages that nobody reads, with what they hold.
    """
    columns: dict[str, Any] = {}
    for row in sample:
        columns = {**{column: row[column] for column in unknown_columns(row, reading)}, **columns}
    keys: dict[str, Any] = {}
    for turns in chats:
        for turn in turns:
            keys = {**dict(unknown_keys(turn)), **keys}
    keys = {**dict(marks), **keys}
    keys = {key: value for key, value in keys.items() if key not in reading.ignored}
    return Unknown(where=where, columns=columns, keys=keys)


def unknown_columns(row: Row, reading: Reading) -> Iterator[str]:
    """Yield the columns of one row that hold something which is not read and has no message of its own."""
    left = [column for column, value in row.items() if not reading.accounts_for(column, value)]
    if not left:
        return
    # Beside a question and an answer choices are shown or refused; elsewhere a text of the row may show them.
    asked = asked_text(*(row.get(column) for column in reading.columns))
    listed = listed_choices(row, reading.columns)
    choices = {column for one in listed if reading.asks or shows_all(asked, one) for column in one.columns}
    for column in left:
        if column not in choices and not is_refused(row, column, reading.columns, chat=reading.chat):
            yield column


def refuse_unknown_columns(row: Row, reading: Reading | None) -> None:
    """Refuse a row with a column that holds something, where the first rows had none such, or had it elsewhere too.

    Raises:
        DataError: names the columns and what to type.
    """
    if reading is None:
        return
    reading.repeats.check(row)
    found = [*unknown_columns(row, reading)]
    if found:
        raise DataError(
            f"{_listed({column: row[column] for column in found}, 'column')} would not be read by training, and the "
            "first rows have nothing there. Name what is to be read by its flag, or type "
            f"--ignore_columns {_typed(found)} to leave it out."
        )


def refuse_unknown(config: DataConfig, found: Iterable[Unknown]) -> None:
    """Refuse data that holds what nobody reads: one error for all files, with the one line to type.

    Raises:
        DataError: lists the names by file.
    """
    held = [unknown for unknown in found if unknown.columns or unknown.keys]
    if not held:
        return
    columns = dict.fromkeys(column for unknown in held for column in unknown.columns)
    keys = dict.fromkeys(key for unknown in held for key in unknown.keys)
    said: dict[str, None] = {}
    for unknown in held:
        listed = [_listed(names, what) for names, what in ((unknown.columns, "column"), (unknown.keys, "key")) if names]
        said[f"{unknown.where} has {' and '.join(listed)}"] = None
    flags = []
    if columns:
        flags.append(f"--ignore_columns {_typed([*config.ignore_columns, *columns])}")
    if keys:
        flags.append(f"--ignore_keys {_typed([*config.ignore_keys, *keys])}")
    named = (
        " Name a column that is to be read by its flag (--prompt_column, --context_column, --response_column, "
        "--messages_column, --image_column, --boxes_column, --page_column)."
    )
    raise DataError(
        f"{'; '.join(said)}, which training would not read.{named if columns else ''} To leave out what is listed, "
        f"type {' '.join(flags)}"
    )


def note_missing(config: DataConfig, columns: Collection[str]) -> None:
    """Warn of ignored columns that no data has, which may be slips: what was meant is then still an error."""
    for name in config.ignore_columns:
        if name not in columns:
            logger.warning("--ignore_columns %s: no data has such a column.%s", name, nearest(name, columns))


def _listed(names: Mapping[str, Any], what: str) -> str:
    values = joined(f"'{name}' ({short(value)})" for name, value in names.items())
    return f"the {what}{'s' if len(names) > 1 else ''} {values}"


def _typed(names: Iterable[str]) -> str:
    return " ".join(shlex.quote(name) for name in dict.fromkeys(names))


def explain_left_out(columns: Iterable[str], config: DataConfig) -> tuple[str, ...]:
    """Say in lines of text which columns are not read, and why."""
    left_out = list(columns)
    named = [column for column in left_out if column in config.ignore_columns]
    others = [column for column in left_out if column not in named]
    lines = [f"not used: {quoted(others)}; empty, by their names nothing to learn, or other than what flags name"]
    lines = lines if others else []
    if named:
        lines.append(f"not used: {quoted(named)}, by --ignore_columns")
    if config.ignore_keys:
        lines.append(f"not used: {quoted(config.ignore_keys)} of turns, parts, boxes and OCR pages, by --ignore_keys")
    return tuple(lines)
