"""JSON documents of several lists that belong together, as public data has them: where their rows are, if anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_lora.data.columns.harmless import is_harmless
from vlm_lora.data.wording import short
from vlm_lora.errors import DataError

ROWS_KEY = "data"
"""The key of a document's rows by which it is known to hold rows, whatever else it holds."""

_ASIDE = ("info", "licenses", "license", "version", "meta", "metadata")
"""Keys of a document that say something of the whole of it."""

_NAMES: Mapping[str, str] = {
    "who made it, and what it is": """
        info licenses description dataset_description title about readme comment comments note notes name citation
        homepage contributor contributors created_by generator generated_at exported_at exported_by
    """,
    "how it is laid out": "schema $schema features columns pandas_version encoding dataset_info builder_name",
    "what a service answers with": """
        total total_count total_rows total_pages num_rows count length page pages per_page limit offset next previous
        has_more object code message msg success ok error errors
    """,
}
"""Keys (case does not count), in addition to those of columns, that say what a document is: nothing to train on."""

_OF_TABLES = frozenset(name for names in _NAMES.values() for name in names.split())

_DESCRIBED = ("schema", "$schema", "features", "columns")
"""Those whose own keys are the names of columns."""

_TOLD = frozenset(
    [
        *("system", "system_prompt", "system_message", "system_instruction", "systeminstruction"),
        *("prompt", "prompt_template", "default_prompt", "user_prompt", "question", "instruction", "instructions"),
    ]
)
"""Keys (case does not count) that say what the rows are trained with, also inside what describes the document."""

_CAPTIONS = '{"image": "000000000009.jpg", "caption": ["...", "..."]}'
_BOXES = '{"image": "000000000009.jpg", "objects": {"bbox": [[x, y, width, height]], "category": ["..."]}}'
_QUESTIONS = '{"image": "000000000009.jpg", "question": "...", "answers": ["...", "..."]}'


def rows_key(document: Mapping[str, Any]) -> str | None:
    """Return the key of a document's rows: `data`, or else the only list of objects next to what is said of all.

    None where there is none, or where the lists belong together.
    """
    if isinstance(document.get(ROWS_KEY), list):
        return ROWS_KEY
    others = [key for key in document if key not in _ASIDE]
    if len(others) != 1 or _joined_form(document) is not None:
        return None
    key = others[0]
    value = document[key]
    return key if isinstance(value, list) and value and all(isinstance(row, dict) for row in value) else None


def refuse_others(where: object, document: Mapping[str, Any], key: str) -> None:
    """Refuse a document that says, beside its rows, what they are to be trained with: it would not be read.

    What a table is, where it came from and the like (`info`, `version`, `license`) says nothing of that.

    Args:
        where: the file, for messages.
        document: all of it.
        key: that of its rows.

    Raises:
        DataError: names the keys.
    """
    found = {name: value for other, inner in document.items() if other != key for name, value in _unread(other, inner)}
    if found:
        held = ", ".join(f"'{name}' ({short(value)})" for name, value in found.items())
        raise DataError(
            f"{where}: beside its rows under '{key}', the document has {held}, which is not read. Write what belongs "
            'to the rows into each of them (a system text, for example, as "system": ...), and remove it here.'
        )


def _unread(name: str, value: Any) -> list[tuple[str, Any]]:
    """Return what a key of a document holds that the rows would be trained with, by its name from the top."""
    if name.casefold() in _OF_TABLES or is_harmless(name):
        return _told_in(name, value)
    return [] if _says_nothing(value) else [(name, value)]


def _told_in(name: str, value: Any) -> list[tuple[str, Any]]:
    """Return what is told to a model inside a description; anything else there describes, too."""
    if not isinstance(value, dict) or name.casefold() in _DESCRIBED:
        return []
    found: list[tuple[str, Any]] = []
    for key, inner in value.items():
        told = key.casefold() in _TOLD and not _says_nothing(inner)
        found += [(key, inner)] if told else _told_in(key, inner)
    return [(f"{name}.{key}", inner) for key, inner in found]


def _says_nothing(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})


def refuse_document(where: object, document: Mapping[str, Any]) -> DataError:
    """Return the error for a document without rows: by name for the public forms that need a join."""
    form = _joined_form(document)
    if form is not None:
        what, wanted, more = form
        return DataError(
            f"{where} holds {what}. Such lists are not joined. Write one row for each image or question, for example "
            f"{wanted}{more}."
        )
    return DataError(
        f"{where}: an object with the keys {', '.join(map(repr, document)) or '(none)'}. Rows are read from a "
        "list of objects, from an object with a `data` list, or from one object a line (.jsonl)."
    )


def _joined_form(document: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Return what a document is, a row that says the same, and where such rows are found; None for any other."""
    images, annotations, questions = (_first(document, key) for key in ("images", "annotations", "questions"))
    if images and annotations is not None:
        if "caption" in annotations:
            return "captions in COCO's form, with images and annotations in lists of their own", _CAPTIONS, ""
        if "bbox" in annotations:
            return "boxes in COCO's form, with images, annotations and categories in lists of their own", _BOXES, ""
        return "annotations in COCO's form, with images in a list of their own", _CAPTIONS, ""
    if images and "sentences" in images:
        return "captions in Karpathy's form, with folder, file name and split of each image apart", _CAPTIONS, ""
    hub = ", as the data sets lmms-lab/VQAv2 and HuggingFaceM4/VQAv2 of the Hub have them"
    if questions and {"question", "question_id"} <= questions.keys() and "answer" not in questions:
        return "questions of VQA, whose answers are in another file", _QUESTIONS, hub
    if annotations and {"answers", "question_id"} <= annotations.keys():
        return "answers of VQA, whose questions are in another file", _QUESTIONS, hub
    return None


def _first(document: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    """Return the first object of the list under a key; None where there is no such list, nothing in an empty one."""
    value = document.get(key)
    if not isinstance(value, list):
        return None
    return next((item for item in value if isinstance(item, dict)), {})
