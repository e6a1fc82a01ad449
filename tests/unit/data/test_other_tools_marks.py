"""Marks of other tools for images in a user's text: in place where they are as many as images, else a bad row."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from support.read_back import read_back

TWO = ["0.png", "1.png"]
ONE_MARK = [
    *("<image_1>", "<image 1>", "<image1>", "<Image_1>", "<IMAGE_1>", "<|image_1|>"),
    *("<IMAGE>", "<Image>", "[IMG]", "<|image|>", "<start_of_image>", "<image_soft_token>", "<image_placeholder>"),
    *("<|image_pad|>", "<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>"),
    "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>",
]


def layouts(text: str, images: list[str], answer: str = "a") -> list[dict[str, Any]]:
    """The same question as a pair, as OpenAI's turns, and with a text part."""
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    parts = [{**turns[0], "content": [{"type": "text", "text": text}]}, turns[1]]
    return [
        {"images": images, "question": text, "answer": answer},
        {"images": images, "messages": turns},
        {"images": images, "messages": parts},
        {"images": images, "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]},
    ]


def told_of(text: str, images: list[str], folder: Path, **settings: Any) -> list[Any]:
    """Return what each layout gives; they must agree."""
    found = []
    for number, row in enumerate(layouts(text, images)):
        (folder / str(number)).mkdir()
        found += read_back([row], folder / str(number), **settings).told
    return found


@pytest.mark.parametrize("mark", ONE_MARK)
def test_one_mark_is_the_images_place(mark: str, tmp_path: Path) -> None:
    assert told_of(f"Look at {mark}: which?", ["0.png"], tmp_path) == [[["Look at ", "<0.png>", ": which?"], ["a"]]] * 4


def test_numbers_say_which_image(tmp_path: Path) -> None:
    expected = [["Is ", "<1.png>", " like ", "<0.png>", "?"], ["a"]]
    assert told_of("Is <image_2> like <image_1>?", TWO, tmp_path) == [expected] * 4


def test_marks_of_both_kinds_together(tmp_path: Path) -> None:
    expected = [["<0.png>", "and ", "<1.png>"], ["a"]]
    assert told_of("<image>and [IMG]", TWO, tmp_path) == [expected] * 4


@pytest.mark.parametrize(
    ("text", "images", "said"),
    [
        ("[IMG] and [IMG]?", ["0.png"], r"2 marks for images in the user's text \(\[IMG\]\), and 1 image without"),
        ("<image_1>?", TWO, r"1 mark .*\(<image_1>\), and 2 images without a place"),
        ("<image_1> <image_1>", TWO, "2 marks .*and 2 images"),
        ("<image_2>", ["0.png"], "1 mark .*and 1 image without"),
        ("<|image_pad|>", [], "1 mark .*and 0 images"),
    ],
)
def test_any_other_number_is_a_bad_row(text: str, images: list[str], said: str, tmp_path: Path) -> None:
    rows = [{"images": images, "question": text, "answer": "a"}, {"images": ["0.png"], "question": "q", "answer": "b"}]
    bad, fine = read_back(rows, tmp_path).told
    assert fine == [["<0.png>", "q"], ["b"]]
    assert isinstance(bad, str)
    assert re.search(said, bad), bad


def test_a_mark_stays_text_where_each_image_has_its_place(tmp_path: Path) -> None:
    """As `<image>` does; in an answer and a system turn it is text always."""
    placed = [{"type": "image"}, {"type": "text", "text": "What does [IMG] mean?"}]
    turns = [
        {"role": "system", "content": "[IMG] is a word."},
        {"role": "user", "content": placed},
        {"role": "assistant", "content": "<image_1>"},
    ]
    assert read_back([{"images": ["0.png"], "messages": turns}], tmp_path).told == [
        [["[IMG] is a word."], ["<0.png>", "What does [IMG] mean?"], ["<image_1>"]]
    ]


def test_without_images_a_mark_is_a_word_if_the_user_says_so(tmp_path: Path) -> None:
    rows = [{"question": "What is [IMG]?", "answer": "a"}]
    assert read_back(rows, tmp_path, image_column="no_pictures").told == [[["What is [IMG]?"], ["a"]]]


def test_a_tag_is_the_image_itself(tmp_path: Path) -> None:
    """As Qwen-VL's files have it, for one image and for two, in every layout."""
    one = "Picture 1: <img>0.png</img>\nWhat is moored?"
    two = "<img>1.png</img><img> 0.png </img>What changed?"
    for number, (text, parts) in enumerate(
        [(one, ["Picture 1: ", "<0.png>", "\nWhat is moored?"]), (two, ["<1.png>", "<0.png>", "What changed?"])]
    ):
        for place, row in enumerate(layouts(text, [])):
            folder = tmp_path / f"{number}-{place}"
            folder.mkdir()
            bare = {key: value for key, value in row.items() if key != "images"}
            found = read_back([bare], folder)
            assert found.told == [[parts, ["a"]]]
            assert "<img>PATH</img>" in found.schema.explain()


def test_a_tag_that_names_no_image_is_a_bad_row(tmp_path: Path) -> None:
    rows = [{"question": "<img>gone.png</img>?", "answer": "a"}, {"question": "<img>0.png</img>?", "answer": "a"}]
    bad, fine = read_back(rows, tmp_path).told
    assert "rows.jsonl row 0 (line 1): The image 'gone.png' cannot be opened" in bad
    assert fine == [["<0.png>", "?"], ["a"]]
