"""What a row holds and training would not read is named: columns, keys of turns and of parts, in every layout."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.datasets import write_image, write_jsonl
from support.read_back import read_back
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.columns.harmless import is_harmless
from vlm_lora.data.columns.search import SAMPLE
from vlm_lora.data.dataset import load_splits
from vlm_lora.errors import ConfigError, DataError

PAGE: dict[str, Any] = {"lines": [{"text": "l", "bbox": [0, 0, 1, 1]}]}
TURNS: list[dict[str, Any]] = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
PARTS: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "image", "image": "0.png"}, {"type": "text", "text": "q"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
]
LAYOUTS: Mapping[str, dict[str, Any]] = {
    "question_answer": {"image": "0.png", "question": "q", "answer": "a"},
    "alpaca": {"image": "0.png", "instruction": "q", "input": "more", "output": "a"},
    "history": {"image": "0.png", "history": [["q0", "a0"]], "query": "q", "response": "a", "system": "s"},
    "choices": {"image": "0.png", "question": "q", "choices": ["x", "y"], "answer": "A"},
    "caption": {"image": "0.png", "caption": "a"},
    "messages": {"image": "0.png", "messages": TURNS},
    "parts": {"messages": PARTS},
    "sharegpt": {
        "image": "0.png",
        "conversations": [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}],
    },
    "exchanges": {"images": ["0.png"], "texts": [{"user": "q", "assistant": "a", "source": "s"}]},
    "prompt_completion": {"image": "0.png", "prompt": TURNS[:1], "completion": TURNS[1:]},
    "boxes": {"image": "0.png", "objects": {"bbox": [[0, 0, 4, 4]], "category": ["cup"]}},
    "page": {"image": "0.png", "text": PAGE},
}


def typed(message: str) -> dict[str, tuple[str, ...]]:
    """Return the flags of the line that a message gives to paste."""
    words = shlex.split(message[message.index("type --") + 5 :])
    flags: dict[str, tuple[str, ...]] = {}
    for word in words:
        if word.startswith("--"):
            name = word.removeprefix("--")
            flags[name] = ()
        else:
            flags[name] += (word,)
    return flags


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_unknown_column_is_named_and_the_line_to_paste_works(layout: str, tmp_path: Path) -> None:
    row = LAYOUTS[layout]
    plain = read_back([row, row], tmp_path).told
    assert isinstance(plain[0], list), plain
    for value in ("x", 7, True, ["x"], {"note": "x"}, [{"deep": {"er": 1}}]):
        with pytest.raises(DataError, match=r"rows\.jsonl has the columns 'remark' .*, 'red flag' ") as caught:
            read_back([row, {**row, "remark": value, "red flag": "y"}], tmp_path)
        flags = typed(str(caught.value))
        assert flags == {"ignore_columns": ("remark", "red flag")}
        again = read_back([row, {**row, "remark": value, "red flag": "y"}], tmp_path, **flags)
        assert again.told == plain
        assert "not used: 'remark', 'red flag', by --ignore_columns" in again.schema.explain()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_columns_that_hold_nothing_are_passed_over(layout: str, tmp_path: Path) -> None:
    row = LAYOUTS[layout]
    plain = read_back([row], tmp_path).told
    nothing: dict[str, Any] = {
        "remark": None,
        "rubric": "",
        "scheme": [],
        "rest": {"deep": [None]},
        "share": float("nan"),
    }
    known = {"questionId": 3, "coco_url": "http://x", "num_tokens": 5, "dataset_info": {"id": 3, "split": "x"}}
    assert read_back([{**row, **nothing, **known}], tmp_path).told == plain
    with pytest.raises(DataError, match="the column 'dataset_info'"):  # the control: one name inside says something
        read_back([{**row, "dataset_info": {"id": 3, "remark": "x"}}], tmp_path)


def with_key(chat: Any, key: str, value: Any, *, part: bool, turn: int) -> Any:
    turns = [dict(one) for one in chat]
    if part:
        turns[turn]["content"] = [{**one, key: value} for one in turns[turn]["content"]]
    else:
        turns[turn][key] = value
    return turns


CHATS = {
    "messages": ("messages", False),
    "parts": ("messages", True),
    "sharegpt": ("conversations", False),
    "exchanges": ("texts", False),
}


@pytest.mark.parametrize("turn", [0, -1])
@pytest.mark.parametrize("layout", CHATS)
def test_an_unknown_key_of_a_turn_or_part_is_named_and_the_line_to_paste_works(
    layout: str, turn: int, tmp_path: Path
) -> None:
    column, part = CHATS[layout]
    row = LAYOUTS[layout]
    plain = read_back([row], tmp_path).told
    for value in ("x", 7, ["x"], {"note": "x"}):
        other = {**row, column: with_key(row[column], "remark", value, part=part, turn=turn)}
        with pytest.raises(DataError, match="has the key 'remark' ") as caught:
            read_back([row, other], tmp_path)
        flags = typed(str(caught.value))
        assert flags == {"ignore_keys": ("remark",)}
        assert read_back([row, other], tmp_path, **flags).told == plain * 2
    known = {**row, column: with_key(row[column], "id", 5, part=part, turn=turn)}
    assert read_back([known], tmp_path).told == plain, "the control"
    null = {**row, column: with_key(row[column], "remark", None, part=part, turn=turn)}
    assert read_back([null], tmp_path).told == plain


def test_all_files_are_named_in_one_error(tmp_path: Path) -> None:
    write_image(tmp_path / "0.png", seed=0)
    row = LAYOUTS["messages"]
    keyed = with_key(TURNS, "mood", "calm", part=False, turn=0)
    one = write_jsonl(tmp_path / "one.jsonl", [{**row, "remark": "x", "messages": keyed}])
    two = write_jsonl(tmp_path / "two.jsonl", [{**LAYOUTS["caption"], "rubric": "y"}])
    three = write_jsonl(tmp_path / "three.jsonl", [{**row, "scheme": "z"}])
    config: dict[str, Any] = {
        "dataset_name": f"{one} + {two}",
        "validation_name": str(three),
        "ignore_columns": ("older",),
    }
    with pytest.raises(DataError) as caught:
        load_splits(DataConfig(**config), need_train=True, need_validation=True)
    for file in (one, two, three):
        assert str(file) in str(caught.value)
    flags = typed(str(caught.value))
    assert {*flags["ignore_columns"]} == {"older", "remark", "rubric", "scheme"}
    assert flags["ignore_keys"] == ("mood",)
    assert load_splits(DataConfig(**{**config, **flags}), need_train=True, need_validation=True).train


def test_a_later_row_is_a_bad_one(tmp_path: Path) -> None:
    row, chat = LAYOUTS["question_answer"], LAYOUTS["messages"]
    told = read_back([*[row] * 100, {**row, "remark": "x"}], tmp_path).told
    assert told[:100] == told[:1] * 100
    assert "rows.jsonl row 100 (line 101): the column 'remark' ('x') would not be read" in told[100]
    later = {**chat, "messages": with_key(TURNS, "mood", "calm", part=False, turn=1)}
    told = read_back([*[chat] * 100, later], tmp_path).told
    assert "row 100 (line 101): Turn 2 (assistant): its 'mood' ('calm') is not read" in told[100]


def test_columns_that_arrow_fills_with_nulls_are_none(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "q", "mood": None}, {"role": "assistant", "content": "a", "mood": None}]
    path = tmp_path / "rows.parquet"
    schema = pa.schema(
        [
            ("messages", pa.list_(pa.struct([(key, pa.string()) for key in ("role", "content", "mood")]))),
            ("remark", pa.string()),
        ]
    )
    pq.write_table(pa.Table.from_pylist([{"messages": chat, "remark": None}], schema), path)
    assert read_back(path, tmp_path).told == [[["q"], ["a"]]]
    chat[1]["mood"] = "calm"
    pq.write_table(pa.Table.from_pylist([{"messages": chat, "remark": None}], schema), path)
    with pytest.raises(DataError, match="has the key 'mood' "):
        read_back(path, tmp_path)


def test_a_name_that_no_data_has_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = {**LAYOUTS["caption"], "remark": "x"}
    with pytest.raises(DataError, match=r"--ignore_columns remrak remark$"):
        read_back([row], tmp_path, ignore_columns=("remrak",))
    read_back([row], tmp_path, ignore_columns=("remark", "remrak"))
    assert "--ignore_columns remrak: no data has such a column. Did you mean 'remark'?" in caplog.text
    caplog.clear()
    read_back([row], tmp_path, ignore_columns=("remark",))
    assert "no data has such" not in caplog.text


def test_what_is_ignored_is_left_out_of_detection_too(tmp_path: Path) -> None:
    row = {"image": "0.png", "question": "q", "query": "other", "answer": "a"}
    with pytest.raises(DataError, match="2 columns that could be the prompt"):
        read_back([row], tmp_path)
    assert read_back([row], tmp_path, ignore_columns=("query",)).told == [[["<0.png>", "q"], ["a"]]]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ignore_keys": ("content",)}, "--ignore_keys content: without it no chat can be read"),
        ({"ignore_columns": ("q",), "prompt_column": "q"}, "--prompt_column q and --ignore_columns q contradict"),
        ({"ignore_columns": ("i",), "image_column": "i"}, "--image_column i and --ignore_columns i contradict"),
    ],
)
def test_what_is_read_cannot_be_ignored(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DataConfig(**settings)


def test_a_context_column_continues_the_question(tmp_path: Path) -> None:
    row = {"image": "0.png", "question": "q", "clue": "Look left.", "answer": "a"}
    with pytest.raises(DataError, match="'clue'"):
        read_back([row], tmp_path)
    found = read_back([row, {**row, "clue": None}], tmp_path, context_column="clue")
    assert found.told == [[["<0.png>", "q\nLook left."], ["a"]], [["<0.png>", "q"], ["a"]]]
    with pytest.raises(DataError, match=r"--context_column clew: .* Did you mean 'clue'"):
        read_back([row], tmp_path, context_column="clew")
    with pytest.raises(ConfigError, match="--context_column is for a question and its answer in columns"):
        read_back([LAYOUTS["caption"]], tmp_path, context_column="caption")


@pytest.mark.parametrize(
    ("names", "harmless"),
    [
        ("id image_id questionId Question-ID __key__ coco_url n_turns Unnamed:0 aesthetic_score img.width", True),
        ("explanation rationale hint caption objects tools label answer_idx correct_choice_idx mask_url text", False),
        ("answerKey ocr_tokens context original_answer direct_answers bbox chosen comment notes", False),
    ],
)
def test_names(names: str, harmless: bool) -> None:
    assert {name: is_harmless(name) for name in names.split()} == dict.fromkeys(names.split(), harmless)


def test_keys_of_boxes_are_named_too(tmp_path: Path) -> None:
    row = LAYOUTS["boxes"]
    plain = read_back([row], tmp_path).told
    listed = [{"bbox": [0, 0, 4, 4], "category": "cup"}]
    for objects in ({**row["objects"], "mood": ["calm"]}, [{**listed[0], "mood": "calm"}]):
        with pytest.raises(DataError, match="has the key 'mood' ") as caught:
            read_back([{**row, "objects": objects}], tmp_path)
        flags = typed(str(caught.value))
        assert read_back([{**row, "objects": objects}], tmp_path, **flags).told == plain
    later = read_back([*[row] * 100, {**row, "objects": {**row["objects"], "mood": ["calm"]}}], tmp_path).told
    assert "Boxes in column 'objects' have 'mood', which is not read" in later[100]
    known = {**row["objects"], "area": [16], "iscrowd": [0], "id": [3], "mood": [None]}
    assert read_back([{**row, "objects": known}], tmp_path).told == plain


def test_false_is_a_value_and_marks_of_rows_are_read(tmp_path: Path) -> None:
    row = LAYOUTS["question_answer"]
    with pytest.raises(DataError, match="the column 'chat_template_kwargs'"):
        read_back([{**row, "chat_template_kwargs": {"enable_thinking": False}}], tmp_path)
    plain = read_back([row], tmp_path).told
    assert read_back([{**row, "train": True, "weight": 1}], tmp_path).told == plain
    for mark in ({"train": False}, {"weight": 0}, {"Loss": False}):
        assert (
            "belongs to the turns and is not read. Leave the row out"
            in read_back([row, {**row, **mark}], tmp_path).told[1]
        )
    with pytest.raises(DataError, match="the column 'loss'"):
        read_back([{**row, "loss": 0.53}], tmp_path)


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": "a", "value": "BETTER"},
        *(
            {"role": "user", "content": [{"type": "text", "text": "q", key: "0.png"}]}
            for key in ("content", "value", "path", "bytes", "base64", "data", "url", "source", "reasoning", "mask")
        ),
        {"role": "user", "content": [{"type": "image", "image": "0.png", "path": "1.png"}]},
        {"role": "user", "content": [{"type": "text", "text": "q", "max_pixels": 100}]},
    ],
)
def test_a_second_text_or_image_of_a_turn_or_part_is_named(turn: dict[str, Any], tmp_path: Path) -> None:
    turns = [turn, TURNS[1]] if turn["role"] == "user" else [TURNS[0], turn]
    with pytest.raises(DataError, match="has the key "):
        read_back([{"messages": turns}], tmp_path)
    same = [{"role": "user", "content": [{"type": "image", "image": "0.png", "path": "0.png"}]}, TURNS[1]]
    assert read_back([{"messages": same}], tmp_path).told == [[["<0.png>"], ["a"]]], "it says the same"


def test_a_context_of_a_chat_is_refused(tmp_path: Path) -> None:
    row = {**LAYOUTS["prompt_completion"], "passage": "x"}
    with pytest.raises(DataError, match="--context_column passage continues a question in a column, and 'prompt', "):
        read_back([row], tmp_path, context_column="passage")


@pytest.mark.parametrize(
    ("page", "named"),
    [
        ({**PAGE, "tables": [["a", "b"]]}, "tables"),
        ({"text": PAGE, "translation": "L"}, "translation"),
        ({"text": {**PAGE, "translation": "L"}}, "translation"),
        ({"text": PAGE, "image": {"width": 32, "height": 24, "caption": "A page."}}, "caption"),
        ({"lines": [{**PAGE["lines"][0], "polygon": [0, 0, 1, 0, 1, 1]}]}, "polygon"),
        ({"lines": PAGE["lines"], "words": [{"text": "l", "label": "heading"}]}, "label"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_unknown_keys_of_pages_and_items_are_named(page: Any, named: str, late: bool, tmp_path: Path) -> None:
    row = {"image": "0.png", "text": page}
    plain = read_back([{"image": "0.png", "text": PAGE}], tmp_path).told
    if late:
        good = [{"image": "0.png", "text": PAGE}] * SAMPLE
        said = read_back([*good, row], tmp_path).told
        assert [told[1] for told in said[:-1]] == [["l"]] * SAMPLE, "the control"
        assert f"The page has '{named}', which is not read. Leave it out, or type --ignore_keys {named}" in said[-1]
    else:
        with pytest.raises(DataError, match=rf"has the key '{named}' \(.*type --ignore_keys {named}$"):
            read_back([row], tmp_path)
    assert read_back([row], tmp_path, ignore_keys=(named,)).told == plain


def test_what_recognition_says_of_itself_is_passed_over(tmp_path: Path) -> None:
    item = {**PAGE["lines"][0], "confidence": 0.9, "conf": 90, "id": 7, "page": 1, "angle": 2, "type": "t", "order": 3}
    page = {"text": {"lines": [item], "tables": []}, "image": {"width": 32, "height": 24, "file_name": "a"}, "page": 1}
    plain = read_back([{"image": "0.png", "text": PAGE}], tmp_path).told
    assert isinstance(plain[0], list)
    assert read_back([{"image": "0.png", "text": page}], tmp_path).told == plain


def test_keys_of_images_and_formats_of_boxes_are_named(tmp_path: Path) -> None:
    row = LAYOUTS["question_answer"]
    odd = {**row, "image": {"path": "0.png", "bytes": None, "caption": "A cup."}}
    known = {**row, "image": {"path": "0.png", "bytes": None, "caption": None, "width": 32, "id": 3}}
    told = read_back([known, odd], tmp_path).told
    assert told[0] == read_back([row], tmp_path).told[0]
    assert "An image's object has 'caption', which is not read" in told[1]
    boxes = LAYOUTS["boxes"]
    for key in ("format", "bbox_mode"):
        with pytest.raises(DataError, match=f"has the key '{key}' .'xyxy'.*--ignore_keys {key}"):
            read_back([{**boxes, "objects": {**boxes["objects"], key: "xyxy"}}], tmp_path)


@pytest.mark.parametrize("turn", [{"role": "user", "text": "q"}, {"speaker": "user", "content": "q"}, ["q"]])
def test_a_chat_that_is_none_says_what_one_looks_like(turn: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"column 'messages' holds no chat\. A chat is a list of turns, each with"):
        read_back([{"image": "0.png", "messages": [turn, turn]}], tmp_path)
