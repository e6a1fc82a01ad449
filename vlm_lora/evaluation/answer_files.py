"""Answers that another program made, read from a file: JSON Lines, a JSON list, or one JSON object by row name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_lora.errors import DataError

ANSWERS = (
    *("generated", "prediction", "predict", "predicted", "output", "outputs", "response", "generated_text"),
    *("completion", "model_output", "answer", "text"),
)
"""Keys that an answer may stand under, the surest first."""

SOURCE, NUMBERS = "source", ("row", "row_number", "row_index", "index", "idx")
IDS = ("id", "question_id", "questionId", "questionid", "custom_id", "key", "sample_id", "image_id", "uid")
"""Keys that say which row an answer is of: its place as `predictions.jsonl` writes it, its number, or its own name."""


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """One answer that was made elsewhere."""

    place: str
    """Where it stands, for messages."""
    name: str | int | None
    """Which row it is of; None where only its order says it."""
    text: str


@dataclass(frozen=True, kw_only=True)
class AnswerFile:
    """All answers of a file, and the keys that were read."""

    answers: tuple[Foreign, ...]
    answer_key: str
    row_key: str | None
    """None where only the order says which row an answer is of; empty for an object by row name."""


def read_answers(path: Path) -> AnswerFile:
    """Read a file of answers.

    Raises:
        DataError: no such file, nothing readable in it, or an entry without an answer: names file and entry.
    """
    entries = _entries(path)
    if not entries:
        raise DataError(f"--predictions_from {path}: holds no answers.")
    if isinstance(entries, Mapping):
        found = [
            Foreign(place=f"{path} '{name}'", name=name, text=_text(value, f"{path} '{name}'"))
            for name, value in entries.items()
        ]
        return AnswerFile(answers=tuple(found), answer_key="the object's values", row_key="")
    first = entries[0][1]
    answer_key = next((key for key in ANSWERS if key in first), None)
    if answer_key is None:
        raise DataError(
            f"--predictions_from {path}: its entries have the keys {', '.join(first)}, and none of them is an answer. "
            f"Name it as one of {', '.join(ANSWERS)}."
        )
    row_key = next((key for key in (SOURCE, *NUMBERS, *IDS) if key in first and key != answer_key), None)
    found = []
    for place, entry in entries:
        missing = [key for key in (answer_key, row_key) if key is not None and key not in entry]
        if missing:
            raise DataError(f"{place}: has no '{missing[0]}', which the first entry has.")
        found.append(Foreign(place=place, name=_name(entry, row_key), text=_text(entry[answer_key], place)))
    return AnswerFile(answers=tuple(found), answer_key=answer_key, row_key=row_key)


def _name(entry: Mapping[str, Any], key: str | None) -> str | int | None:
    if key is None:
        return None
    value = entry[key]
    return value if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _entries(path: Path) -> Sequence[tuple[str, Mapping[str, Any]]] | Mapping[str, Any]:
    """Return a file's entries, each with its place; or the one object by row name."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"--predictions_from {path}: no such file (looked at {path.absolute()}).") from None
    except (OSError, ValueError) as error:
        raise DataError(f"--predictions_from {path}: cannot be read as UTF-8 text: {error}") from error
    try:
        content = json.loads(text)
    except RecursionError:
        raise DataError(f"--predictions_from {path}: is nested too deeply to hold answers.") from None
    except ValueError:
        content = None  # JSON Lines, or broken
    if isinstance(content, list):
        return _objects((f"{path} entry {number}", value) for number, value in enumerate(content))
    if isinstance(content, dict) and not any(key in content for key in ANSWERS):
        return content
    lines = ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
    return _objects((f"{path} line {number}", _parsed(line, f"{path} line {number}")) for number, line in lines)


def _parsed(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{place}: is no JSON ({error}). The file holds one object a line, or one JSON list."
        ) from error


def _objects(values: Iterable[tuple[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    found: list[tuple[str, Mapping[str, Any]]] = []
    for place, value in values:
        if isinstance(value, str):
            value = {ANSWERS[0]: value}  # a list of bare answers
        if not isinstance(value, dict):
            raise DataError(f"{place}: must be an object with an answer, or the answer's text.")
        found.append((place, value))
    return found


def _text(value: Any, place: str) -> str:
    """Return the text of an answer, also as a list of one (vLLM) and within a batch API's response (OpenAI)."""
    while not isinstance(value, str):
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        elif isinstance(value, Mapping) and (
            key := next((key for key in ("body", "choices", "message", "content", "text") if key in value), None)
        ):
            value = value[key]
        elif value is None:
            return ""
        elif isinstance(value, int | float):
            return str(value)
        else:
            raise DataError(f"{place}: its answer is no text but {json.dumps(value, ensure_ascii=False)[:80]}.")
    return value
