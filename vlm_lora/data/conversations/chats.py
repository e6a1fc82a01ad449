"""A chat as a row holds it: a list of turns, or JSON text of one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from vlm_lora.data.columns.names import TURN_KEYS


def parse_turns(value: Any) -> list[Mapping[str, Any]] | None:
    """Return a value as a list of turns (also from JSON text), or None where it is no chat."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if not isinstance(value, list | tuple) or not value:
        return None
    is_chat = all(
        isinstance(turn, Mapping) and any(role in turn and text in turn for role, text in TURN_KEYS) for turn in value
    )
    return list(value) if is_chat else None


def texts_in(value: Any) -> Iterator[str]:
    """Yield all texts inside a value: a question may be a chat."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from texts_in(inner)
