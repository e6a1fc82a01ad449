"""`<image>` in what users say: the place of an image where the numbers agree, row by row; else a bad row."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from support.read_back import read_back


def user(content: Any, *images: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "a <image>"}]
    return {"messages": turns, "images": list(images)}


def share(text: str, *images: str) -> dict[str, Any]:
    return {"messages": [{"from": "human", "value": text}, {"from": "gpt", "value": "a"}], "images": list(images)}


def told(*parts: str) -> list[list[str]]:
    return [list(parts), ["a <image>"]]


def test_an_odd_row_changes_nothing_in_the_others(tmp_path: Path) -> None:
    rows = [user("<image>What?", "0.png")] * 5 + [user("In this <image> what?", "1.png")]
    found = read_back(rows, tmp_path).told
    assert found == [told("<0.png>", "What?")] * 5 + [told("In this ", "<1.png>", " what?")]
    rows = [user("<image><image>Which?", "0.png", "1.png")] * 9
    found = read_back([*rows, user("Compare <image> with <image> please", "2.png", "3.png")], tmp_path).told
    assert found[8:] == [
        told("<0.png>", "<1.png>", "Which?"),
        told("Compare ", "<2.png>", " with ", "<3.png>", " please"),
    ]


def test_marks_behind_the_rows_that_detection_reads_count_alike(tmp_path: Path) -> None:
    found = read_back([user("q")] * 120 + [user("<image>What?", "0.png")], tmp_path)
    assert found.told == [told("q")] * 120 + [told("<0.png>", "What?")]


@pytest.mark.parametrize("prompt", ["problem", "question", "instruction"])
def test_marks_in_a_prompt_column_are_places(prompt: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"images": ["0.png"], prompt: "<image>Find x.", "answer": "<image> 3"},
        {"images": ["0.png", "1.png"], prompt: "Is <image>\nor <image> it?", "answer": "a"},
        {"images": ["0.png"], prompt: "Plain.", "answer": "a"},
    ]
    found = read_back(rows, tmp_path)
    assert found.told == [
        [["<0.png>", "Find x."], ["<image> 3"]],
        [["Is ", "<0.png>", "\nor ", "<1.png>", " it?"], ["a"]],
        [["<0.png>", "Plain."], ["a"]],
    ]
    assert "marks an image's place where a row has as many" in found.schema.explain()


def test_marks_in_alpaca_s_input_and_in_chat_prompts_are_places(tmp_path: Path) -> None:
    alpaca = {"images": ["0.png"], "instruction": "Count.", "input": "In <image>.", "output": "3"}
    assert read_back([alpaca], tmp_path).told == [[["Count.\nIn ", "<0.png>", "."], ["3"]]]
    pair = {"images": ["0.png"], "prompt": [{"role": "user", "content": "In <image>?"}], "completion": "3"}
    assert read_back([pair], tmp_path).told == [[["In ", "<0.png>", "?"], ["3"]]]


def test_parts_that_give_each_image_its_place_leave_marks_as_text(tmp_path: Path) -> None:
    text = {"type": "text", "text": "Say <image>."}
    rows = [
        user([{"type": "image"}, text], "0.png"),
        user([{"type": "image", "path": "1.png"}, text]),
        user([text], "2.png"),
        user([{"type": "image"}, text], "0.png", "3.png"),
    ]
    assert read_back(rows, tmp_path).told == [
        told("<0.png>", "Say <image>."),
        told("<1.png>", "Say <image>."),
        told("Say ", "<2.png>", "."),
        told("<0.png>", "Say ", "<3.png>", "."),
    ]


@pytest.mark.parametrize(
    ("text", "images", "said"),
    [
        (
            "<image>What?",
            ("0.png", "1.png"),
            r"1 <image> in the user's text, and 2 images.*not clear.*\"type\": \"image\"",
        ),
        ("<image> or <image>?", ("0.png",), r"2 <image> in the user's text, and 1 image in .*not clear"),
        ("<image>What?", (), r"1 <image>.*the row has no image.*--image_column COLUMN.*--image_column no_pictures"),
    ],
)
def test_other_numbers_of_marks_are_bad_rows(text: str, images: tuple[str, ...], said: str, tmp_path: Path) -> None:
    good = {"images": ["2.png"], "question": "<image>q", "answer": "a"}
    rows = [good, {"images": list(images), "question": text, "answer": "a"}]
    for first, second in (rows, [user("<image>q", "2.png"), user(text, *images)]):
        fine, bad = read_back([first, second], tmp_path).told
        assert fine[0] == ["<2.png>", "q"], "the others stay as they are"
        assert isinstance(bad, str)
        assert f"{tmp_path / 'rows.jsonl'} row 1 (line 2): " in bad
        assert re.search(said, bad), bad


def test_marks_in_text_without_any_column_of_images_are_bad_rows_unless_there_are_none(tmp_path: Path) -> None:
    row = {"question": "What is <image>?", "answer": "a tag"}
    (bad,) = read_back([row], tmp_path).told
    assert "the row has no image" in bad
    found = read_back([row], tmp_path, image_column="no_pictures")
    assert found.told == [[["What is <image>?"], ["a tag"]]]
    assert "<image> in user texts is a word" in found.schema.explain()


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<image>\nWhat?", "What?"),
        ("<image>\n<image>\nWhat?\nWhy?", "What?\nWhy?"),
        ("What?\n<image>", "What?"),
        ("What?\n<image>\n<image>", "What?"),
        ("<image>\r\nWhat?", "What?"),
        ("And <image>, why?", "And , why?"),
        ("<image>", ""),
        ("What?\n", "What?\n"),
    ],
)
def test_without_images_marks_of_sharegpt_turns_are_left_out(text: str, left: str, tmp_path: Path) -> None:
    found = read_back([share(text), share(text, "0.png")], tmp_path, image_column="no_pictures")
    assert found.told == [[[left], ["a"]]] * 2
    assert "<image> in user turns is left out: there are no images" in found.schema.explain()


def test_without_images_parts_for_them_are_left_out_and_their_files_not_looked_for(tmp_path: Path) -> None:
    text = {"type": "text", "text": "What is <image>?"}
    own = [{"type": "image", "path": "gone.png"}, {"type": "image_url", "image_url": {"url": "https://a.example/x"}}]
    rows = [user([{"type": "image"}, text], "0.png"), user([*own, text]), user([{"type": "image"}])]
    found = read_back(rows, tmp_path, image_column="no_pictures")
    assert found.told == [told("What is <image>?"), told("What is <image>?"), [[], ["a <image>"]]]
    assert (
        "image: none, by --image_column no_pictures; images of the chat's parts are left out" in found.schema.explain()
    )
    pair = {"prompt": [{"role": "user", "content": [*own, text]}], "completion": "3"}
    assert read_back([pair], tmp_path, image_column="no_pictures").told == [[["What is <image>?"], ["3"]]]
    fine, bad, _ = read_back(rows, tmp_path).told
    assert fine == told("<0.png>", "What is <image>?"), "the control: with images they are placed and looked for"
    assert "gone.png" in bad
    unknown = read_back([user([{"type": "sound"}, text])], tmp_path, image_column="no_pictures").told[0]
    assert "A part has the type 'sound'" in unknown


def test_marks_of_sharegpt_turns_are_always_places(tmp_path: Path) -> None:
    rows = [share("<image>q", "0.png"), share("<image>q"), share("q", "0.png")]
    fine, bad, without = read_back(rows, tmp_path).told
    assert fine == [["<0.png>", "q"], ["a"]] == without
    assert "1 place for images in the turns" in bad
