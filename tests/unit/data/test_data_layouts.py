"""Rows to conversations, each layout against a conversation written by hand."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.datasets import draw_chart, encode_png, write_image
from vlm_lora.data.columns.schema import Schema
from vlm_lora.data.conversation import Conversation, ImageRef, Part, Role, RowSource, Text, Turn
from vlm_lora.data.conversations.layouts import build_conversation
from vlm_lora.data.images.values import ImagePlace
from vlm_lora.errors import DataError, ImageError

SOURCE = RowSource(file="train.jsonl", row=17)
ONE, TWO = encode_png(draw_chart(1)[0]), encode_png(draw_chart(2)[0])
IMG1, IMG2 = ImageRef(source=ONE), ImageRef(source=TWO)
QA = Schema(layout="question_answer", image="image", prompt="query", response="label")
CHAT = Schema(layout="messages", image="images", messages="messages")
SHARE = Schema(layout="messages", image="images", messages="messages")


def build(row: dict[str, Any], schema: Schema, **options: Any) -> Conversation:
    return build_conversation(row, schema, source=SOURCE, place=ImagePlace(folder=Path("/nowhere")), **options)


def turn(role: Role, *parts: str | Part) -> Turn:
    return Turn(role=role, parts=tuple(Text(text=part) if isinstance(part, str) else part for part in parts))


def openai(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def sharegpt(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"from": role, "value": value} for role, value in turns]


@pytest.mark.parametrize(
    ("label", "answer", "accepted"),
    [
        (["14"], "14", ("14",)),
        (["a", "b", "a"], "a", ("a", "b", "a")),
        ([{"answer": "net", "answer_id": 1}, {"answer": "web", "answer_id": 2}], "net", ("net", "web")),
        ("yes", "yes", ()),
        ("", "", ()),
        ([""], "", ("",)),
        (3, "3", ()),
        (2.5, "2.5", ()),
        ([3, 2.5], "3", ("3", "2.5")),
        (" padded\n", " padded\n", ()),
    ],
)
def test_questions_and_answers(label: Any, answer: str, accepted: tuple[str, ...]) -> None:
    found = build({"image": {"bytes": ONE, "path": None}, "query": "How many?", "label": label}, QA)
    assert found == Conversation(
        turns=(turn("user", IMG1, "How many?"), turn("assistant", answer)),
        source=SOURCE,
        accepted_answers=accepted,
    )


def test_several_images_go_before_the_question_in_order() -> None:
    found = build({"image": [ONE, TWO], "query": "Compare.", "label": "same"}, QA)
    assert found.turns[0] == turn("user", IMG1, IMG2, "Compare.")
    assert found.turns[0] != turn("user", IMG2, IMG1, "Compare.")


@pytest.mark.parametrize("row", [{"image": None}, {}, {"image": []}, {"image": ""}])
def test_rows_without_an_image_are_text_only(row: dict[str, Any]) -> None:
    assert build({**row, "query": "q", "label": "a"}, QA).turns == (turn("user", "q"), turn("assistant", "a"))


def test_alpaca_joins_instruction_and_input() -> None:
    schema = Schema(layout="question_answer", image="image", prompt="instruction", context="input", response="output")
    row = {"instruction": "Translate.", "input": "Haus", "output": "house", "image": ONE}
    assert build(row, schema).turns == (turn("user", IMG1, "Translate.\nHaus"), turn("assistant", "house"))
    for empty in ("", None):
        assert build({**row, "input": empty}, schema).turns[0] == turn("user", IMG1, "Translate.")


def test_typed_marks_stay_text_in_answers_and_beside_parts() -> None:
    found = build({"image": ONE, "query": "</s>?", "label": "<image>"}, QA)
    assert found.turns == (turn("user", IMG1, "</s>?"), turn("assistant", "<image>"))
    chat = openai(("user", [{"type": "image"}, {"type": "text", "text": "<image>?"}]), ("assistant", "<image>"))
    for schema in (CHAT, SHARE):
        found = build({"images": [ONE], "messages": chat}, schema)
        assert found.turns == (turn("user", IMG1, "<image>?"), turn("assistant", "<image>"))


@pytest.mark.parametrize("label", [None, float("nan"), [], [None], ["a", None]])
def test_a_missing_answer_is_an_error_with_file_and_row(label: Any) -> None:
    with pytest.raises(DataError, match=r"^train\.jsonl row 17: .*'label'"):
        build({"image": ONE, "query": "q", "label": label}, QA)


@pytest.mark.parametrize("query", [None, ["q"], {"text": "q"}, True])
def test_a_question_must_be_text(query: Any) -> None:
    with pytest.raises(DataError, match=r"^train\.jsonl row 17: .*the prompt \('query'\)"):
        build({"image": ONE, "query": query, "label": "a"}, QA)


def test_truth_values_are_no_answers() -> None:
    with pytest.raises(DataError, match="true or false"):
        build({"image": ONE, "query": "q", "label": True}, QA)


URI = f"data:image/png;base64,{base64.b64encode(ONE).decode()}"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": ONE},
        {"type": "image", "image": {"bytes": ONE, "path": None}},
        {"type": "image", "url": URI},
        {"type": "image", "path": URI},
        {"type": "image", "value": URI},
        {"type": "image_url", "image_url": {"url": URI}},
        {"type": "image_url", "image_url": {"url": URI, "detail": "high"}},
        {"type": "image_url", "image_url": URI},
        {"type": "image_url", "value": URI},
        {"type": "input_image", "image_url": URI},
        {"type": "image", "image": ONE, "text": None, "image_url": None},
        {"image": ONE},
    ],
)
def test_image_parts_that_bring_their_own_image(part: dict[str, Any]) -> None:
    for text in (
        {"type": "text", "text": "q", "image": None},
        {"type": "text", "value": "q"},
        {"text": "q"},
        "q",
    ):
        chat = openai(("user", [text, part]), ("assistant", [{"type": "text", "text": "a"}]))
        assert build({"messages": chat}, CHAT).turns == (turn("user", "q", IMG1), turn("assistant", "a"))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image"},
        {"type": "image", "text": None, "image": None},
        {"type": "image_url", "image_url": None},
        {"type": "image", "text": ""},
    ],
)
def test_image_parts_without_an_image_take_the_next_of_the_column(part: dict[str, Any]) -> None:
    chat = openai(
        ("user", [part, {"type": "text", "text": "first"}]),
        ("assistant", "a"),
        ("user", [{"type": "text", "text": "second"}, part]),
        ("assistant", "b"),
    )
    assert build({"messages": chat, "images": [ONE, TWO]}, CHAT).turns == (
        turn("user", IMG1, "first"),
        turn("assistant", "a"),
        turn("user", "second", IMG2),
        turn("assistant", "b"),
    )


def test_indexed_image_parts_name_their_image() -> None:
    parts = [{"type": "image", "index": 1.0, "text": None}, {"type": "image", "index": 0, "text": None}]
    chat = openai(("user", parts), ("assistant", "a"))
    assert build({"messages": chat, "images": [ONE, TWO]}, CHAT).images == (IMG2, IMG1)
    with pytest.raises(DataError, match="do not name each"):
        build(
            {"messages": openai(("user", [parts[0], parts[0]]), ("assistant", "a")), "images": [ONE, TWO]},
            CHAT,
        )


def test_images_without_a_place_go_to_the_start_of_the_first_user_turn() -> None:
    chat = openai(("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b"))
    found = build({"messages": chat, "images": [ONE, TWO]}, CHAT)
    assert found.turns == (
        turn("system", "s"),
        turn("user", IMG1, IMG2, "q"),
        turn("assistant", "a"),
        turn("user", "r"),
        turn("assistant", "b"),
    )
    shared = sharegpt(("human", "q"), ("gpt", "a"))
    assert build({"messages": shared, "images": ONE}, SHARE).turns[0] == turn("user", IMG1, "q")


def test_sharegpt_marks_are_places_anywhere_in_user_turns() -> None:
    chat = sharegpt(
        ("system", "Use <image>."),
        ("human", "<image>\nWhat?"),
        ("gpt", "A <image>."),
        ("human", "And this <image> one?"),
        ("gpt", "b"),
    )
    assert build({"messages": chat, "images": [ONE, TWO]}, SHARE).turns == (
        turn("system", "Use <image>."),
        turn("user", IMG1, "\nWhat?"),
        turn("assistant", "A <image>."),
        turn("user", "And this ", IMG2, " one?"),
        turn("assistant", "b"),
    )


@pytest.mark.parametrize(
    ("text", "images"),
    [("<image>", []), ("<image><image>", [ONE]), ("<image>", [ONE, TWO]), ("<image>", None)],
)
def test_marks_and_images_must_be_equally_many(text: str, images: Any) -> None:
    chat = sharegpt(("human", text), ("gpt", "a"))
    marks, count = text.count("<image>"), len(images or [])
    with pytest.raises(DataError, match=rf"^train\.jsonl row 17: {marks} places? for images.*and {count} images? in"):
        build({"messages": chat, "images": images}, SHARE)


def test_a_column_image_beside_own_images_is_an_error() -> None:
    chat = openai(("user", [{"type": "image", "image": ONE}]), ("assistant", "a"))
    with pytest.raises(DataError, match="0 places for images"):
        build({"messages": chat, "images": [TWO]}, CHAT)


@pytest.mark.parametrize("role", ["human", "user", "User", "HUMAN"])
@pytest.mark.parametrize("answerer", ["gpt", "assistant", "model", "GPT"])
def test_roles_by_their_usual_names(role: str, answerer: str) -> None:
    for chat in (openai((role, "q"), (answerer, "a")), sharegpt((role, "q"), (answerer, "a"))):
        assert build({"messages": chat}, CHAT).turns == (turn("user", "q"), turn("assistant", "a"))


def test_chats_as_json_text_and_with_null_filled_turns() -> None:
    chat = openai(("user", "q"), ("assistant", ""))
    filled = [{**one, "from": None, "value": None} for one in chat]
    swapped = [{"from": one["role"], "value": one["content"], "role": None, "content": None} for one in chat]
    for value in (json.dumps(chat), chat, tuple(chat), filled, swapped):
        assert build({"messages": value}, CHAT).turns == (turn("user", "q"), turn("assistant", ""))


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        (
            openai(("user", "q"), ("assistant", "a"), ("user", "and?")),
            r"The last turn is the user's \('and\?'\)",
        ),
        (openai(("user", "q")), "No assistant turn"),
        (
            openai(("user", "q"), ("critic", "x"), ("assistant", "a")),
            r"Turn 2 has the unknown role 'critic'.*human",
        ),
        (openai(("user", "q"), ("assistant", None)), r"Turn 2 \(assistant\) has no content"),
        (
            openai(("user", [{"type": "video", "video": "x"}]), ("assistant", "a")),
            r"Turn 1 \(user\).*'video'",
        ),
        (openai(("user", [{"type": "text", "text": None}]), ("assistant", "a")), "A text part has no text"),
        (openai(("user", [7]), ("assistant", "a")), "given as a value of type int"),
        (openai(("user", "q"), ("assistant", [{"type": "image", "image": ONE}])), "answer with text only"),
        (openai(("assistant", "a")), "1 image and no user turn"),
        ([], "is empty"),
        (None, "is empty"),
        ("hello", "no list of turns"),
        ([{"text": "?"}], "no list of turns"),
    ],
)
def test_chats_that_cannot_be_used_are_named(chat: Any, said: str) -> None:
    row = {"messages": chat, "images": [ONE] if "no user turn" in said else None}
    with pytest.raises(DataError, match=rf"^train\.jsonl row 17: .*{said}"):
        build(row, CHAT)


@pytest.mark.parametrize("column", ["video", "videos", "audio", "Audios"])
@pytest.mark.parametrize("value", ["b.mp4", ["b.mp4"], {"bytes": b"x", "path": None}])
def test_sound_and_video_beside_the_text_are_refused(column: str, value: Any) -> None:
    rows = (
        ({"messages": sharegpt(("human", "<video>\nhi"), ("gpt", "a"))}, CHAT),
        ({"query": "q", "label": "a", "image": ONE}, QA),
    )
    for row, schema in rows:
        with pytest.raises(DataError, match=rf"^train\.jsonl row 17: The column '{column}' holds .*video are not read"):
            build({**row, column: value}, schema)
        empties: tuple[Any, ...] = (None, "", [])
        for empty in empties:
            assert build({**row, column: empty}, schema).turns[-1] == turn("assistant", "a")
    asked = Schema(layout="question_answer", prompt=column, response="label")
    assert build({column: "q", "label": "a"}, asked).turns == (turn("user", "q"), turn("assistant", "a"))


def test_turns_keep_their_order_where_roles_do_not_alternate() -> None:
    chat = openai(("assistant", "hello"), ("user", "q"), ("user", "r"), ("assistant", "a"))
    assert [one.role for one in build({"messages": chat}, CHAT).turns] == [
        "assistant",
        "user",
        "user",
        "assistant",
    ]


PAIR = Schema(layout="prompt_completion", image="images", prompt="prompt", response="completion")


def test_prompt_completion_pairs() -> None:
    expected = (turn("system", "s"), turn("user", IMG1, "q"), turn("assistant", "a"))
    row = {
        "prompt": openai(("system", "s"), ("user", "q")),
        "completion": openai(("assistant", "a")),
        "images": [ONE],
    }
    assert build(row, PAIR).turns == expected
    assert build({**row, "completion": ["a", "b"]}, PAIR).accepted_answers == ("a", "b")
    assert build({**row, "prompt": "q"}, PAIR).turns == expected[1:]
    with pytest.raises(DataError, match="No assistant turn"):
        build({**row, "completion": openai(("user", "a"))}, PAIR)


def test_a_system_prompt_goes_before_conversations_that_have_none() -> None:
    row = {"image": ONE, "query": "q", "label": "a"}
    assert build(row, QA, system_prompt="Be brief.").turns[0] == turn("system", "Be brief.")
    chat = openai(("system", "Own."), ("user", "q"), ("assistant", "a"))
    assert [t.text for t in build({"messages": chat}, CHAT, system_prompt="Be brief.").turns] == [
        "Own.",
        "q",
        "a",
    ]


def test_image_errors_keep_their_class_and_name_row_and_turn(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"^train\.jsonl row 17: The image is a URL"):
        build({"image": "https://x.org/a.png", "query": "q", "label": "a"}, QA)
    chat = openai(("user", [{"type": "image_url", "image_url": {"url": "https://x.org/a.png"}}]), ("assistant", "a"))
    with pytest.raises(ImageError, match=r"^train\.jsonl row 17: Turn 1 \(user\): The image is a URL"):
        build({"messages": chat}, CHAT)
    file = write_image(tmp_path / "a.png", seed=1)
    found = build_conversation(
        {"image": "a.png", "query": "q", "label": "a"}, QA, source=SOURCE, place=ImagePlace(folder=tmp_path)
    )
    assert found.images == (ImageRef(source=file.resolve()),)


@given(st.lists(st.text(alphabet="ab\n<image>", max_size=8), min_size=1, max_size=5))
def test_cutting_at_marks_loses_nothing(stretches: list[str]) -> None:
    text = "<image>".join(stretches)
    row = {"messages": sharegpt(("human", text), ("gpt", "a")), "images": [ONE] * text.count("<image>")}
    parts = build(row, SHARE).turns[0].parts
    assert "".join(part.text if isinstance(part, Text) else "<image>" for part in parts) == text
    assert all(part.text for part in parts if isinstance(part, Text)) or text == ""
