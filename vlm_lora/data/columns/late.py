"""A column that first appears behind a stream's first rows: whether the same data without streaming would use it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.columns.names import CONTEXT_OF_PROMPT, role_of_name
from vlm_lora.data.columns.schema import Schema, detect_schema
from vlm_lora.data.columns.search import is_numbered, may_be_image
from vlm_lora.data.columns.unknown import Unknown
from vlm_lora.data.conversations.texts import parse_turns
from vlm_lora.data.conversations.told import HISTORY, SYSTEM
from vlm_lora.data.formats.rows import Rows
from vlm_lora.data.images.values import is_missing, looks_like_image
from vlm_lora.data.ocr.boxes import holds_boxes
from vlm_lora.data.ocr.pages import holds_page
from vlm_lora.data.sources.streams import HeldRows, StreamedRow
from vlm_lora.errors import DataError


class LateColumns:
    """Says of each row whether it has a column that detection would have used, had it seen it.

    Args:
        first: the rows that detection has seen, one at least.
        schema: what it found.
        config: the flags that it was given.
    """

    def __init__(self, first: Rows, schema: Schema, config: DataConfig) -> None:
        self._first = first
        self._schema = schema
        self._config = config
        self._columns = frozenset(first.columns)
        self._harmless: set[Hashable] = set()

    def check(self, row: StreamedRow) -> None:
        """Refuse a value that would be lost.

        Detection is asked again, as if the first row held the late values: names alone do not decide.

        Raises:
            DataError: names file, row, column and what keeps the reading as it is.
        """
        new = row.values.keys() - self._columns
        late = {c: row.values[c] for c in sorted(new) if _is_known(c) and not is_missing(row.values[c])}
        kinds = frozenset((column, _kind(column, value)) for column, value in late.items())
        if not late or kinds in self._harmless:
            return
        if self._reads_alike(late, self._config):
            self._harmless.add(kinds)
            return
        column = next(
            (c for c, value in late.items() if not self._reads_alike({c: value}, self._config)), next(iter(late))
        )
        raise DataError(
            f"{row.source}: the column '{column}' may {self._part(column)}, and the first {len(self._first)} rows, "
            "which say what a stream's columns are, do not have it. Put a row that has it among them, or type "
            f"--streaming false. If it is not meant, type --ignore_columns {' '.join(late)}."
        )

    def _part(self, column: str) -> str:
        if column.casefold() in CONTEXT_OF_PROMPT.get((self._schema.prompt or "").casefold(), ()):
            return f"continue the prompt '{self._schema.prompt}'"
        if is_numbered(column) and role_of_name(column) is None:
            return "hold a further image"
        return f"be the {role_of_name(column) or ('system text' if column.casefold() in SYSTEM else 'history')}"

    def _reads_alike(self, late: Mapping[str, Any], config: DataConfig) -> bool:
        """Tell whether detection finds the same with the late values in the first row."""
        first = self._first
        rows = [{**first[0], **late}, *(first[number] for number in range(1, len(first)))]
        table = HeldRows(columns=(*first.columns, *late), rows=rows)
        try:
            found = detect_schema(Rows([table], first.origins, first.declared), config, quiet=True)
        except DataError:
            return False
        return _bare(found) == _bare(self._schema)


def _is_known(column: str) -> bool:
    told = (*SYSTEM, *HISTORY, *(name for names in CONTEXT_OF_PROMPT.values() for name in names))
    return role_of_name(column) is not None or column.casefold() in told or is_numbered(column)


def _kind(column: str, value: Any) -> Hashable:
    """Return what detection asks of a value."""
    chat = parse_turns(value) is not None
    return chat, holds_page(value, column), holds_boxes(value), may_be_image(value), looks_like_image(value)


def _bare(schema: Schema) -> Schema:
    """Return what is read as what, without the words that explain it."""
    return replace(schema, reasons=(), no_pictures=False, unknown=Unknown(), reading=None)
