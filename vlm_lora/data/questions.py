"""Rows that only ask: a file of questions, read as training data are, whether or not its rows have answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.columns.schema import detect_schema
from vlm_lora.data.conversation import RowSource
from vlm_lora.data.dataset import ConversationDataset
from vlm_lora.data.formats.json_files import Faults, JsonFile, read_json, read_json_lines
from vlm_lora.data.formats.rows import Rows, Table, join_files
from vlm_lora.data.sources.named import open_source
from vlm_lora.data.splits import whole
from vlm_lora.data.wording import quoted
from vlm_lora.errors import DataError

ANSWER, UNKNOWN = "answer", "?"
"""The column, and the text in it, that stand for the answers that rows of questions have not got."""

_ASKS = ("user", "human")
_TOLERANT = {".json": read_json, ".jsonl": read_json_lines, ".ndjson": read_json_lines}
_TRIED = 32
"""Rows that are looked at before all are taken to be unusable, each for a reason of its own."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """The rows of a file of questions."""

    rows: ConversationDataset
    broken: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    """Rows that are none, as a line that is no JSON: by their number in the file, their place and what is wrong."""


def open_questions(name: str, config: DataConfig) -> Questions:
    """Open a file of questions.

    Args:
        name: what the user named.
        config: which columns mean what, and where images lie.

    Raises:
        DataError: nothing readable there, several splits, or columns that cannot be told apart. A row that cannot be
            used raises where it is read.
    """
    broken: Faults = {}
    try:
        source = open_source(name, config_name=config.dataset_config_name, flag="file")
        if len(source.splits) > 1:
            raise DataError(f"--file {name} has the splits {quoted(source.splits)}. Name the file of one of them.")
        ((split, rows),) = source.splits.items()
    except DataError:
        usable = _usable_rows(Path(name).expanduser(), broken)
        if usable is None:
            raise
        split, rows = "file", usable
    if not len(rows):
        raise DataError(f"--file {name} has no rows.")
    places = {number: str(RowSource(file=name, row=number, line=line)) for number, (line, _) in broken.items()}
    said = {number: (places[number], text) for number, (_, text) in broken.items()}
    return Questions(rows=_with_columns(name, split, rows, config), broken=said)


def put_broken(
    records: Sequence[dict[str, Any]], numbers: Sequence[int], broken: dict[int, tuple[str, str]]
) -> list[dict[str, Any]]:
    """Put rows that are none between the records of the others, by their numbers in the file.

    Args:
        records: of some rows.
        numbers: in the file, of these rows and of those behind them.
        broken: by number, place and what is wrong; those that are put in are taken out.
    """
    found = dict(zip(numbers, records, strict=False))
    behind = numbers[len(records)] if len(numbers) > len(records) else None
    for number in [one for one in broken if behind is None or one < behind]:
        place, text = broken.pop(number)
        found[number] = {"source": place, "error": text}
    return [found[number] for number in sorted(found)]


def _usable_rows(path: Path, broken: Faults) -> Rows | None:
    """Return a file's rows without those that are none, which are noted; None where that does not help."""
    reader = _TOLERANT.get(path.suffix.lower())
    if reader is None or not path.is_file():
        return None
    table = reader(path, broken)
    return join_files([(str(path), path.parent, _Usable(table, broken))]) if broken and len(table) else None


def _with_columns(name: str, split: str, rows: Rows, config: DataConfig) -> ConversationDataset:
    """Say which columns of the rows mean what, whether or not they have answers."""
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


class _Usable:
    """A JSON file of which some rows are none: the others keep their numbers."""

    def __init__(self, table: JsonFile, broken: Faults) -> None:
        self._table = table
        self._numbers = [number for number in range(len(table) + len(broken)) if number not in broken]
        self.columns = table.columns

    def number(self, place: int) -> int:
        return self._numbers[place]

    def line(self, place: int) -> int:
        return self._table.line(place)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self._table[index]


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
