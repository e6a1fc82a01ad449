"""Chats that are no lists of turns: lists of exchanges, and an object with a list for each key."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path
from typing import Any

import pytest

from support.read_back import read_back
from vlm_lora.data.conversation import ImageRef, Text
from vlm_lora.data.conversations.image_places import UserText
from vlm_lora.data.conversations.texts import parse_turns
from vlm_lora.data.conversations.turns import read_turns
from vlm_lora.data.images.values import ImagePlace
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
    for flags in ({}, {"messages_column": "texts"}):
        with pytest.raises(DataError, match=r"has the key 'mood' \('x'\)"):
            read_back(rows, tmp_path, **flags)
    assert read_back(rows, tmp_path, ignore_keys=("mood",)).told == [[["<0.png>", "q"], ["a"]]]


@pytest.mark.parametrize(
    "pairs",
    [[["How many?", "Three."], ["Which colour?", "Grey."]], [("How many?", "Three."), ("Which colour?", "Grey.")]],
)
def test_pairs_are_exchanges_where_the_column_is_a_chat(pairs: Any, tmp_path: Path) -> None:
    row = {"images": ["0.png"], "conversation": pairs}
    assert read_back([row], tmp_path).told == [TOLD]
    assert read_back([{**row, "conversation": json.dumps(pairs)}], tmp_path).told == [TOLD]
    other = {"images": ["0.png"], "said": pairs}
    assert read_back([other], tmp_path, messages_column="said").told == [TOLD]
    with pytest.raises(DataError, match="no column could be taken as the prompt"):  # elsewhere they may be anything
        read_back([other], tmp_path)
    assert "no list of turns" in str(read_back([row, {**row, "conversation": [["a", "b", "c"]]}], tmp_path).told[1])


def test_chats_that_python_wrote_out_in_a_csv_are_read(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "It's \\d?"}, {"role": "assistant", "content": "Yes.", "name": None}]
    table = tmp_path / "rows.csv"
    with table.open("w", newline="") as stream:
        csv.writer(stream).writerows([["image", "messages"], ["0.png", repr(chat)], ["1.png", repr(chat)[:-1]]])
    told = read_back(table, tmp_path).told
    assert told[0] == [["<0.png>", "It's \\d?"], ["Yes."]]
    assert "is no list of turns" in told[1]


ENCODED = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
GIF = base64.b64decode(ENCODED)
SERVICES: dict[str, dict[str, Any]] = {
    "openai": {"type": "image_url", "image_url": {"url": f"data:image/gif;base64,{ENCODED}", "detail": "low"}},
    "openai_responses": {"type": "input_image", "image_url": f"data:image/gif;base64,{ENCODED}", "detail": "auto"},
    "anthropic": {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/gif", "data": ENCODED},
        "cache_control": {"type": "ephemeral"},
    },
    "bedrock": {"image": {"format": "gif", "source": {"bytes": ENCODED}}},
    "bedrock_bytes": {"image": {"format": "gif", "source": {"bytes": GIF}}},
    "gemini": {"inline_data": {"mime_type": "image/gif", "data": ENCODED}},
    "gemini_camel": {"inlineData": {"mimeType": "image/gif", "data": ENCODED}},
    "mcp": {"type": "image", "data": ENCODED, "mimeType": "image/gif"},
}


@pytest.mark.parametrize("service", SERVICES)
def test_images_of_services_requests_are_read(service: str, tmp_path: Path) -> None:
    parts = [
        SERVICES[service],
        {"text": "Size?"} if "type" not in SERVICES[service] else {"type": "text", "text": "Size?"},
    ]
    text = "parts" if service.startswith("gemini") else "content"
    chat = [{"role": "user", text: parts}, {"role": "model", text: [{"text": "1x1"}]}]
    place = ImagePlace(folder=tmp_path)
    user, answer = read_turns(chat, place)
    assert user.parts == [ImageRef(source=GIF), UserText(text="Size?")]
    assert answer.parts == [Text(text="1x1")]
    if service != "bedrock_bytes":
        found = read_back([{"messages": chat}], tmp_path)
        assert [len(turn) for turn in found.told[0]] == [2, 1]
        assert found.told[0][0][1] == "Size?"


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ({"type": "image", "source": {"type": "url", "url": "https://x.org/a.png"}}, "is a URL"),
        ({"fileData": {"mimeType": "image/png", "fileUri": "gs://bucket/a.png"}}, "never fetched"),
        (
            {"image": {"format": "png", "source": {"s3Location": {"uri": "s3://bucket/a.png"}}}},
            "an object with the keys",
        ),
        ({"type": "document", "source": {"type": "base64", "data": ENCODED}}, "A part has the type 'document'"),
    ],
)
def test_images_that_lie_elsewhere_are_bad_rows(part: dict[str, Any], named: str, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": [part, {"text": "Size?"}]}, {"role": "assistant", "content": "1x1"}]
    assert named in read_back([{"messages": chat}], tmp_path).told[0]


def test_marks_thoughts_and_calls_of_an_exchange_are_the_answers(tmp_path: Path) -> None:
    chat = [
        {"user": "q1", "assistant": "a1", "weight": 0},
        {"user": "q2", "assistant": "a2", "loss": True, "reasoning_content": "Hm."},
    ]
    first, answer, second, last = read_turns(parse_turns(chat) or [], None)
    assert (answer.supervised, last.supervised) == (False, True)
    assert last.reasoning == "Hm."
    assert [turn.text for turn in (first, second)] == ["q1", "q2"]
    assert parse_turns([{"question": "q", "answer": "a", "content": "more"}]) is None


def test_pairs_may_be_of_role_and_text(tmp_path: Path) -> None:
    row = {"images": ["0.png"], "conversations": [["user", "q"], ["assistant", "a"]]}
    assert read_back([row], tmp_path).told == [[["<0.png>", "q"], ["a"]]]


def test_geminis_thoughts_are_no_text(tmp_path: Path) -> None:
    chat: list[dict[str, Any]] = [
        {"role": "user", "parts": [{"text": "q"}]},
        {"role": "model", "parts": [{"text": "secret", "thought": True}, {"text": "ans"}]},
    ]
    answer = read_turns(chat, None)[1]
    assert (answer.text, answer.reasoning) == ("ans", "secret")


def test_other_names_of_roles_and_texts_are_read_and_types_that_are_none_are_bad_rows(tmp_path: Path) -> None:
    chat: list[dict[str, Any]] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "a", "annotations": []}]},
    ]
    assert read_back([{"messages": chat}], tmp_path).told == [[["Be brief."], ["q"], ["a"]]]
    odd = [{"role": "user", "content": [{"type": [], "text": "q"}]}, {"role": "assistant", "content": "a"}]
    assert "A part has the type [], which is no text" in read_back([{"messages": odd}], tmp_path).told[0]


def test_a_call_by_its_role_keeps_its_thoughts() -> None:
    call = json.dumps({"name": "zoom", "arguments": {}})
    chat = [{"role": "user", "content": "q"}, {"role": "function_call", "content": call, "reasoning_content": "Hm."}]
    answer = read_turns(chat, None)[1]
    assert (answer.reasoning, [one.name for one in answer.tool_calls]) == ("Hm.", ["zoom"])
    with pytest.raises(DataError, match="its text is a call, and it has calls beside it"):
        read_turns([chat[0], {**chat[1], "tool_calls": [{"name": "zoom", "arguments": {}}]}], None)
