"""One public data set: its files, the source of its columns, and the conversation that each row is meant to be."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from support.datasets import draw_chart, encode_png
from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.sources import parse
from vlm_lora.data.conversation import Conversation, Part, Text
from vlm_lora.data.dataset import ConversationDataset, load_splits

SIZE = (96, 64)
"""Width and height of every image here, in pixels."""

HUB = "https://huggingface.co/datasets/"

MEMORY = "from memory, not verified"
"""The source of columns that could not be looked up."""

SEEN = "public programs that load it; its card was not read"
"""The source of columns that were seen in use."""


@cache
def picture(number: int) -> bytes:
    """Return image `number` as a PNG file's bytes."""
    return encode_png(draw_chart(number, SIZE)[0])


def stored(number: int) -> dict[str, Any]:
    """Return image `number` as `datasets` stores it in Parquet."""
    return {"bytes": picture(number), "path": f"{number}.png"}


@dataclass(frozen=True, kw_only=True)
class PublicSet:
    """A data set in small."""

    name: str
    """As in the table of docs/data.md."""
    columns: str
    """As in that table."""
    how: str
    """How it is read, in a few words, as in that table; for a refusal what to use instead."""
    source: str
    """Where its columns were looked up; a part of a Hub address stands for that data set's card."""
    rows: Sequence[Mapping[str, Any]] | None = None
    """The rows; None where `document` is given."""
    told: Sequence[Sequence[str]] = ()
    """By row: its turns, written by hand, as `user: <0>How many?`; `<0>` is image 0."""
    file: str = "train-00000-of-00001.parquet"
    """Its main file, which `--dataset_name` names."""
    document: Any = None
    """A JSON document that is no list of rows."""
    beside: Mapping[str, Any] = field(default_factory=dict)
    """Further JSON files by their path."""
    images: Mapping[str, int] = field(default_factory=dict)
    """Image files by their path, where rows name them."""
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names that the columns declare for their numbers (`ClassLabel`), by column or `column.key`."""
    flag: str = ""
    """What is typed in addition to `--dataset_name`; nothing, or one flag."""
    unread: tuple[str, ...] = ()
    """Columns and keys of turns that hold something and that training does not read."""
    telling: tuple[str, ...] = ()
    """Those of them that say something that a model could learn from; the others are ids, sources, sizes, kinds."""
    refused: str = ""
    """For data that is refused by name: what the message must say."""

    @property
    def address(self) -> str:
        """The source as a whole address."""
        return self.source if self.source in (MEMORY, SEEN) or "://" in self.source else f"{HUB}{self.source}"

    def write(self, folder: Path) -> Path:
        """Write its files and return the one that `--dataset_name` names."""
        for path, number in self.images.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(picture(number))
        for path, document in self.beside.items():
            (folder / path).write_text(json.dumps(document), encoding="utf-8")
        main = folder / self.file
        main.parent.mkdir(parents=True, exist_ok=True)
        rows = [dict(row) for row in self.rows or ()]
        if main.suffix == ".parquet":
            pq.write_table(self._table(rows), main)
        elif main.suffix == ".jsonl":
            main.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        elif isinstance(self.document, bytes):
            main.write_bytes(self.document)
        else:
            main.write_text(json.dumps(rows if self.document is None else self.document), encoding="utf-8")
        return main

    def _table(self, rows: Sequence[dict[str, Any]]) -> pa.Table:
        table = pa.Table.from_pylist(list(rows))
        if not self.labels:
            return table
        features: dict[str, Any] = {name: {"dtype": "string", "_type": "Value"} for name in table.column_names}
        for place, names in self.labels.items():
            column, _, key = place.partition(".")
            label: Any = {"names": list(names), "_type": "ClassLabel"}
            listed = {"feature": {key: label} if key else label, "_type": "Sequence"}
            single = not key and not pa.types.is_list(table.schema.field(column).type)
            features[column] = label if single else listed
        return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})

    def open(self, folder: Path) -> ConversationDataset:
        """Write it and open it as a run with its flag does."""
        config = self.config(self.write(folder))
        train = load_splits(config.data, need_train=True, need_validation=False).train
        assert isinstance(train, ConversationDataset)
        return train

    def words(self, path: Path) -> list[str]:
        """Return the flags of a run on it."""
        typed = [word.replace("{folder}", str(path.parent)) for word in shlex.split(self.flag)]
        return ["--dataset_name", str(path), "--validation_fraction", "0", *typed, *self.ignored]

    @property
    def ignored(self) -> list[str]:
        """The flags that leave out what says something and is not read."""
        columns = [name for name in self.telling if "." not in name]
        keys = [name.split(".")[-1] for name in self.telling if "." in name]
        return [
            *(["--ignore_columns", *columns] if columns else []),
            *(["--ignore_keys", *keys] if keys else []),
        ]

    def config(self, path: Path) -> RunConfig:
        """Return the settings of a run on it."""
        return parse([*self.words(path), "--model_name_or_path", "m", "--output_dir", "o"], environ={})


def tell(conversation: Conversation) -> list[str]:
    """Write a conversation a turn a line, as `told` has it."""
    return [f"{turn.role}: {''.join(map(_tell_part, turn.parts))}" for turn in conversation.turns]


def _tell_part(part: Part) -> str:
    if isinstance(part, Text):
        return part.text
    where = part.source
    assert isinstance(where, bytes | Path)
    with Image.open(io.BytesIO(where) if isinstance(where, bytes) else where) as image:
        return f"<{_numbers()[image.convert('RGB').tobytes()]}>"


@cache
def _numbers() -> Mapping[bytes, int]:
    return {draw_chart(number, SIZE)[0].tobytes(): number for number in range(8)}
