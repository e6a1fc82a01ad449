"""Keys of turns and parts next to their text: marks of what is trained on are read, what else says something is not."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.datasets import draw_chart, encode_png
from support.read_back import read_back
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.columns.schema import Schema
from vlm_lora.data.conversation import Conversation, ImageRef, RowSource, Text
from vlm_lora.data.conversations.layouts import build_conversation
from vlm_lora.data.dataset import load_splits
from vlm_lora.data.images.values import ImagePlace
from vlm_lora.errors import DataError

ONE = encode_png(draw_chart(1)[0])
IMG = ImageRef(source=ONE)
GIF = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
GIF_BYTES = base64.b64decode(GIF.partition(",")[2])
CHAT = Schema(layout="messages", image="images", messages="messages")
PAIR = Schema(layout="prompt_completion", image="images", prompt="prompt", response="completion")
ASKED = {"role": "user", "content": "q"}


def build(row: dict[str, Any], schema: Schema = CHAT) -> Conversation:
    place = ImagePlace(folder=Path("/nowhere"))
    return build_conversation(row, schema, source=RowSource(file="r.jsonl", row=4), place=place)


def turns_of(n: int, mark: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}", **mark}]


def trained_on(row: dict[str, Any], schema: Schema = CHAT) -> list[str]:
    return [turn.text for turn in build(row, schema).turns if turn.is_answer]


OFF = [
    *({key: 0} for key in ("weight", "loss_mask", "loss_weight", "loss_scale")),
    *({key: False} for key in ("loss", "train", "training", "trainable", "Train_On_Turn", "supervised")),
    *({"weight": 0.0}, {"weight": None, "loss": False}, {"weight": 0, "loss": False}),
]


@pytest.mark.parametrize("off", OFF)
def test_marked_answers_are_only_read(off: dict[str, Any]) -> None:
    on = {key: None if value is None else type(value)(1) for key, value in off.items()}
    turns = [*turns_of(0, off), *turns_of(1, on), *turns_of(2, {})]
    names = {"role": "from", "content": "value", "user": "human", "assistant": "gpt"}
    sharegpt = [{names.get(key, key): names.get(str(value), value) for key, value in turn.items()} for turn in turns]
    for chat in (turns, json.dumps(turns), sharegpt):
        found = build({"messages": chat})
        assert [turn.text for turn in found.turns if turn.is_answer] == ["a1", "a2"]
        assert [turn.text for turn in found.turns] == ["q0", "a0", "q1", "a1", "q2", "a2"]
    assert trained_on({"messages": [*turns_of(0, on), *turns_of(1, off)]}) == ["a0"], "also the last one"
    assert trained_on({"prompt": turns[:3], "completion": turns[3:]}, PAIR) == ["a1", "a2"]


def test_marks_in_a_history_and_in_parquet_count(tmp_path: Path) -> None:
    history = turns_of(0, {"weight": 0})
    rows = [{"messages": turns_of(1, {"weight": 1}), "history": history, "image": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    config = DataConfig(dataset_name=str(tmp_path / "rows.parquet"), validation_fraction=0.0)
    train = load_splits(config, need_train=True, need_validation=False).train
    assert train is not None
    assert [turn.text for turn in train[0].turns if turn.is_answer] == ["a1"]
    assert [turn.text for turn in train[0].turns] == ["q0", "a0", "q1", "a1"]


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        (turns_of(0, {"weight": 0}), "Each answer is marked as one that is not trained on"),
        (turns_of(0, {"weight": 0.5}), r"Turn 2 \(assistant\): its 'weight' is 0\.5\. A mark .* is 0 or 1"),
        (turns_of(0, {"loss": "false"}), "its 'loss' is 'false'"),
        (turns_of(0, {"loss_mask": [0, 1]}), r"its 'loss_mask' is \[0, 1\]"),
        (turns_of(0, {"weight": float("nan")}), "its 'weight' is nan"),
        (turns_of(0, {"weight": 1, "loss": False}), "its marks 'weight', 'loss' say both"),
        (turns_of(0, {"masked": True}), "its 'masked' .* is not read.*Write \"weight\": 0"),
        (turns_of(0, {"train_detail": [{"begin_offset": 0}]}), "its 'train_detail'"),
        (
            [{**ASKED, "weight": 1}, {"role": "assistant", "content": "a"}],
            r"Turn 1 \(user\): its 'weight' asks to train",
        ),
        ([{"role": "system", "content": "s", "train": True}, *turns_of(0, {})], r"Turn 1 \(system\): its 'train'"),
        (
            turns_of(0, {"content": [{"type": "text", "text": "a", "weight": 0}]}),
            "a part is marked otherwise than its turn",
        ),
    ],
)
def test_marks_that_cannot_be_honoured_are_bad_rows(turns: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(DataError, match=f"^r.jsonl row 4: .*{said}"):
        build({"messages": turns})
    off = [{**ASKED, "weight": 0, "loss": False}, {"role": "assistant", "content": "a", "weight": None}]
    assert trained_on({"messages": off}) == ["a"], "the control: off marks on what is never trained on say nothing"


CALL = [{"type": "function", "function": {"name": "zoom", "arguments": "{}"}}]
READ = ("tool_calls", "tool_call", "function_call", "reasoning_content", "reasoning", "thinking", "tools")
"""Read elsewhere (test_tools.py)."""
UNREAD: list[dict[str, Any]] = [
    *({key: "It has a tail."} for key in ("thought", "Thought")),
    *({"reasoning_details": [{"text": "x"}]}, {"refusal": "No."}),
    *({"images": ["a.png"]}, {"image": "a.png"}, {"video": "a.mp4"}, {"audio": {"id": "x"}}),
]


@pytest.mark.parametrize("key", UNREAD)
def test_keys_that_are_not_read_make_bad_rows(key: dict[str, Any]) -> None:
    (name,) = key
    for content in ("Zooming.", "", None):
        answer = {"role": "assistant", "content": content, **key}
        for row, schema in (
            ({"messages": [ASKED, answer]}, CHAT),
            ({"messages": json.dumps([ASKED, answer])}, CHAT),
            ({"prompt": [ASKED], "completion": [answer]}, PAIR),
            ({"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": content, **key}]}, CHAT),
        ):
            with pytest.raises(
                DataError, match=rf"^r\.jsonl row 4: Turn 2 \(\w+\): its '{name}' \(.*\) is not read\. \w+"
            ):
                build(row, schema)


@pytest.mark.parametrize("nothing", [None, "", [], {}, [None], {"name": None, "arguments": None}, "[]"])
def test_keys_that_hold_nothing_are_not_there(nothing: Any) -> None:
    answer = {"role": "assistant", "content": "a", **{key: nothing for unread in UNREAD for key in (*unread, *READ)}}
    assert trained_on({"messages": [ASKED, answer], "tools": nothing, "tool_calls": nothing}) == ["a"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"content": [], "output": "x"}, "its 'output' .'x'. is not read. Leave it out, or type --ignore_keys output"),
        ({"content": "", "text": "Lies here."}, "its 'text' .'Lies here.'. is not read"),
        (
            {"content": [{"type": "text", "text": " "}], "output": "x"},
            "its 'output' .'x'. is not read",
        ),
        ({"content": "a", "from": "gpt", "value": "b"}, "Turn 2 has two texts that differ"),
        (
            {"reasoning": "x"},
            r"'messages' is no list of turns: 2 has no \"role\" and \"content\", but 'role', 'reasoning'",
        ),
        ({"content": [{"type": "server_tool_use", "name": "zoom"}]}, "the type 'server_tool_use'"),
    ],
)
def test_an_answer_whose_text_lies_elsewhere_is_a_bad_row(answer: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        build({"messages": [ASKED, {"role": "assistant", **answer}]})
    named = {"role": "assistant", "content": "", "name": "bot", "weight": 1, "id": 3}
    assert trained_on({"messages": [ASKED, named]}) == [""], "the control: keys that carry no answer"


def test_columns_that_belong_to_turns_are_bad_rows(tmp_path: Path) -> None:
    chat = {"messages": turns_of(0, {}), "image": None}
    pair = {"question": "q", "answer": "a", "image": None}
    for row in (chat, pair):
        (said,) = read_back([{**row, "tool_calls": CALL, "reasoning_content": None}], tmp_path).told
        assert "The column 'tool_calls' (" in said
    (said,) = read_back([{**chat, "loss_mask": [0, 1]}], tmp_path).told
    assert "The column 'loss_mask' ([0, 1]) belongs to the turns" in said
    things = {**pair, "tools": ["saw", "drill"]}
    assert read_back([things], tmp_path, ignore_columns=("tools",)).told == [[["q"], ["a"]]], "a list of things"


@pytest.mark.parametrize(
    ("part", "parts"),
    [
        ({"text": "What?", "image": ONE}, [Text(text="What?"), IMG]),
        ({"image": ONE, "text": "What?"}, [IMG, Text(text="What?")]),
        (
            {"type": None, "image_url": {"url": None}, "image": {"bytes": ONE, "path": None}, "text": "What?"},
            [IMG, "What?"],
        ),
        ({"text": "What?", "image": None}, ["What?"]),
        ({"text": "What?", "image": {"bytes": None, "path": None}}, ["What?"]),
        ({"text": None, "image": ONE}, [IMG]),
        ({"type": "text", "text": "x", "image": ONE}, ["x", IMG]),
        ({"image": ONE, "type": "text", "text": "x"}, [IMG, "x"]),
        ({"type": "input_text", "text": "x", "image_url": {"url": GIF}}, ["x", ImageRef(source=GIF_BYTES)]),
        ({"type": "image", "image": ONE, "text": "x"}, [IMG, "x"]),
        ({"type": "image_url", "image_url": {"url": GIF}, "text": "x"}, [ImageRef(source=GIF_BYTES), "x"]),
        ({"type": "image", "text": "", "image": ONE}, [IMG]),
    ],
)
def test_a_part_is_all_that_it_holds_in_order(part: dict[str, Any], parts: list[Any]) -> None:
    wanted = tuple(Text(text=p) if isinstance(p, str) else p for p in parts)
    for content in (part, [part]):
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}]
        assert build({"messages": turns}).turns[0].parts == wanted
        assert build({"prompt": turns[:1], "completion": turns[1:]}, PAIR).turns[0].parts == wanted


def test_such_a_part_in_parquet_keeps_the_order_of_its_keys(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": [{"text": "What?", "image": "0.png"}, {"text": "Well?", "image": None}]}]
    answer = {"role": "assistant", "content": [{"text": "a", "image": None}]}
    pq.write_table(pa.Table.from_pylist([{"messages": [*chat, answer]}]), tmp_path / "rows.parquet")
    assert read_back(tmp_path / "rows.parquet", tmp_path).told == [[["What?", "<0.png>", "Well?"], ["a"]]]
    told = read_back([{"messages": [*chat, answer]}], tmp_path, image_column="no_pictures").told
    assert told == [[["What?", "Well?"], ["a"]]]


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"type": "text", "text": "x", "images": [ONE]}, "A part of type 'text' has 'images', which is not read there"),
        ({"type": "image", "source": {"type": "file", "file_id": "x"}}, "An image is given as an object with the keys"),
        ({"type": "input_image", "file_id": "x"}, "A part of type 'input_image' has 'file_id'"),
        ({"type": "image", "source": {"type": "base64", "data": "x"}}, "The image's base64 text .x. is broken"),
        ({"image": ONE, "image_url": "a.png", "text": "x"}, "its 'image_url' .'a.png'. is not read"),
        ({"id": "x"}, "A part has neither a type nor a text nor an image, but 'id'"),
    ],
)
def test_parts_that_cannot_be_read_are_bad_rows(part: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=rf"^r\.jsonl row 4: Turn 1 \(user\): {said}"):
        build({"messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "a"}]})
