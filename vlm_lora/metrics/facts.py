"""What is known of the data that answers are scored on, from their columns and first rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlm_lora.batching.boxes.writing import is_placed
from vlm_lora.data.columns.schema import Schema
from vlm_lora.data.columns.search import SAMPLE
from vlm_lora.data.conversation import Conversation
from vlm_lora.data.dataset import ConversationDataset, Conversations, each_data_set
from vlm_lora.errors import DataError
from vlm_lora.metrics.rules.json_fields import is_json
from vlm_lora.metrics.scored import Answered


@dataclass(frozen=True, kw_only=True)
class SetFacts:
    """What is known of one data set."""

    name: str
    """The split as the log names it."""
    layout: str
    """As `Schema.layout`; `answers` where only answers are known."""
    columns: frozenset[str] = frozenset()
    """Names of all its columns, in small letters."""
    prompt: str | None = None
    """The column that asks, in small letters."""
    response: str | None = None
    """The column that answers, alike."""
    accepted: tuple[int, ...] = ()
    """How many accepted answers each of the first rows has."""
    boxes: bool = False
    """Whether answers have boxes that vlm-lora writes and reads back."""
    page_text: bool = False
    """Whether rows are OCR pages whose text is asked for."""
    calls: bool = False
    """Whether all first answers call tools."""
    json: bool = False
    """Whether all first answers are JSON."""


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What is known of all data sets that are scored together."""

    sets: tuple[SetFacts, ...] = ()


def facts_of(data: Conversations | None) -> DataFacts:
    """Return what is known of validation data; reads the first rows of each data set, and decodes no image."""
    return DataFacts(sets=tuple(map(_facts_of_set, each_data_set(data))))


def facts_of_answers(answers: Sequence[Answered]) -> DataFacts:
    """Return what is known where only answers are: those of a predictions.jsonl."""
    first = answers[:SAMPLE]
    known = SetFacts(
        name="the answers",
        layout="answers",
        accepted=tuple(len(answer.accepted) for answer in first),
        boxes=any(answer.boxes is not None for answer in answers),
        json=_all_json([answer.accepted[0] for answer in first if answer.accepted]),
    )
    return DataFacts(sets=(known,) if answers else ())


def _facts_of_set(data: ConversationDataset) -> SetFacts:
    schema = data.schema
    outputs = _page_outputs(schema)
    # What boxes and pages ask for is known from the schema; their rows would be read with their images' sizes.
    rows = _first_rows(data) if schema.boxes is None and not outputs else []
    return SetFacts(
        name=data.name,
        layout=schema.layout,
        columns=frozenset(column.casefold() for column in data.rows.columns),
        prompt=None if schema.prompt is None else schema.prompt.casefold(),
        response=None if schema.response is None else schema.response.casefold(),
        accepted=tuple(max(len(row.accepted_answers), 1) for row in rows),
        boxes=schema.boxes is not None
        or any("box" in output for output in outputs)
        or any(is_placed([row.answer]) for row in rows),
        page_text=any(output != ["box"] for output in outputs),
        calls=bool(rows) and all(row.answer.tool_calls for row in rows),
        json=_all_json([row.answer.text for row in rows]),
    )


def _page_outputs(schema: Schema) -> list[list[str]]:
    return [] if schema.page is None else [task.output.split(",") for task in schema.page.tasks]


def _first_rows(data: ConversationDataset) -> list[Conversation]:
    rows = []
    for number in range(min(len(data), SAMPLE)):
        try:
            rows.append(data[number])
        except DataError:
            continue  # a bad row, which the data report tells of
    return rows


def _all_json(texts: Sequence[str]) -> bool:
    return bool(texts) and all(map(is_json, texts))
