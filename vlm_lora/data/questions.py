"""Rows that only ask: a file of questions, read as training data are, whether or not its rows have answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.columns.schema import detect_schema
from vlm_lora.data.dataset import ConversationDataset
from vlm_lora.data.formats.rows import Rows, Table
from vlm_lora.data.sources.named import open_source
from vlm_lora.data.splits import whole
from vlm_lora.data.wording import quoted
from vlm_lora.errors import DataError

ANSWER, UNKNOWN = "answer", "?"
"""The column, and the text in it, that stand for the answers that rows of questions have not got."""

_ASKS = ("user", "human")
_TRIED = 32
"""Rows that are looked at before all are taken to be unusable, each for a reason of its own."""


def open_questions(name: str, config: DataConfig) -> ConversationDataset:
    """Open a file of questions.

    Args:
        name: what the user named.
        config: which columns mean what, and where images lie.

    Raises:
        DataError: nothing readable there, several splits, or columns that cannot be told apart. A row that cannot be
            used raises where it is read.
    """
    source = open_source(name, config_name=config.dataset_config_name, flag="file")
    if len(source.splits) > 1:
        raise DataError(f"--file {name} has the splits {quoted(source.splits)}. Name the file of one of them.")
    ((split, rows),) = source.splits.items()
    if not len(rows):
        raise DataError(f"--file {name} has no rows.")
    config = replace(config, dataset_name=None, validation_name=name)
    completed = Rows([_Answered(table) for table in rows.tables], rows.origins, rows.declared)
    found, problems = [], []
    for way in (rows, completed):
        try:
            data = ConversationDataset(whole(split, way), detect_schema(way, config), config)
        except DataError as error:
            problems.append(error)
            continue
        if _any_reads(data):
            return data
        found.append(data)
    if not found:
        raise problems[0]  # it is not the answers that are missing
    return found[0]


def _any_reads(data: ConversationDataset) -> bool:
    """Say whether one of the first rows can be used: a chat that ends with a question is only seen in a row."""
    for index in range(min(len(data), _TRIED)):
        try:
            data.at(index)
        except DataError:
            continue
        return True
    return False


class _Answered:
    """A table whose rows are completed: by a column of answers, or each chat by a turn that answers."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._chats = len(table) > 0 and any(_last_role(value) is not None for value in table[0].values())
        self.columns = table.columns if self._chats or ANSWER in table.columns else (*table.columns, ANSWER)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._table, name)  # keys, numbers and lines of rows, where the table has them

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        row = self._table[index]
        if not self._chats:
            return {**row, ANSWER: row.get(ANSWER) or UNKNOWN}
        return {name: _answered(value) for name, value in row.items()}


def _last_role(value: Any) -> str | None:
    """Return the key under which the last turn of a chat names who speaks; None where a value is no chat."""
    last = value[-1] if isinstance(value, list) and value else None
    return next((key for key in ("role", "from") if isinstance(last, Mapping) and key in last), None)


def _answered(value: Any) -> Any:
    key = _last_role(value)
    if key is None or value[-1][key] not in _ASKS:
        return value
    role, text = ("assistant", "content") if key == "role" else ("gpt", "value")
    return [*value, {key: role, text: UNKNOWN}]
