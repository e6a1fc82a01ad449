"""Chats that are no lists of turns: lists of exchanges, and an object with a list for each key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.read_back import read_back
from vlm_lora.data.conversations.texts import parse_turns
from vlm_lora.errors import DataError

TOLD = [["<0.png>", "How many?"], ["Three."], ["Which colour?"], ["Grey."]]


@pytest.mark.parametrize(
    "keys",
    [("user", "assistant"), ("human", "gpt"), ("question", "answer"), ("query", "response"), ("instruction", "output")],
    ids="-".join,
)
@pytest.mark.parametrize("column", ["texts", "qa"])
def test_a_list_of_exchanges_is_a_chat(keys: tuple[str, str], column: str, tmp_path: Path) -> None:
    """The cauldron's `texts`, and others; both answers are trained on."""
    asked, answered = keys
    chat = [
        {asked: "How many?", answered: "Three.", "source": "made"},
        {asked: "Which colour?", answered: "Grey.", "source": None},
    ]
    found = read_back([{"images": ["0.png"], column: chat}], tmp_path)
    assert found.told == [TOLD]


@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value")])
def test_an_object_of_lists_is_a_chat(keys: tuple[str, str], tmp_path: Path) -> None:
    """As Arrow stores a list of objects."""
    roles = ["user", "assistant", "user", "assistant"]
    texts = ["How many?", "Three.", "Which colour?", "Grey."]
    if keys[0] == "from":
        roles, texts = ["human", "gpt"] * 2, ["<image>How many?", *texts[1:]]
    chat = {keys[0]: roles, keys[1]: texts}
    for value in (chat, json.dumps(chat)):
        assert read_back([{"images": ["0.png"], "messages": value}], tmp_path).told == [TOLD]


@pytest.mark.parametrize(
    "value",
    [
        [{"user": "q", "assistant": "a", "mood": "x"}],  # a key that nobody would read
        [{"user": "q", "assistant": "a"}, {"user": "q"}],
        {"role": ["user", "assistant"], "content": ["q"]},
        {"role": ["user"], "content": ["q"], "weight": 1},
        {"role": "user", "content": "q"},
        [["q", "a"]],
        "[" * 100_000,
        '{"a":' * 100_000,
        [],
    ],
)
def test_what_is_no_chat(value: Any) -> None:
    assert parse_turns(value) is None


def test_an_exchange_with_another_key_is_named(tmp_path: Path) -> None:
    rows = [{"images": ["0.png"], "texts": [{"user": "q", "assistant": "a", "mood": "x"}]}]
    with pytest.raises(DataError, match=r"column 'texts' holds no chat.*'mood': 'x'"):
        read_back(rows, tmp_path, messages_column="texts")
