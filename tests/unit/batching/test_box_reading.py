"""What models write is read back: whole lists, lists that are cut off, fences around them, marks; and nothing else."""

from __future__ import annotations

import pytest

from vlm_lora.batching.boxes.conventions import CONVENTIONS, OWN_CHOICE, PIXELS, BoxConvention, SeenImage
from vlm_lora.batching.boxes.writing import read_places

SEEN = SeenImage(size=(2000, 1000), given=(2000, 1000), fed=(1000, 500))
MARKS, REFS, LOCS = (CONVENTIONS[name] for name in ("qwen2_vl", "internvl", "paligemma"))

ONE = '{"bbox_2d": [10, 20, 30, 40], "label": "cup"}'


def read(text: str, convention: BoxConvention, *, bare: bool = True, images: int = 1) -> list[object]:
    found = read_places(text, [SEEN] * images, convention, bare=bare)
    return [(region.label, *(round(number, 3) for number in region.numbers)) for region in found]


@pytest.mark.parametrize(
    "text",
    [
        f"[{ONE}]",
        ONE,
        f"```json\n[\n  {ONE}\n]\n```",
        f"Here it is: [{ONE}].",
        f'[{ONE}, {{"bbox_2d": [1, 2, 3',
        f'[{ONE}, {{"bbox_2d": [1, 2, 3], "label": "no box"}}]',
        '[{"label": "cup", "bbox": [10, 20, 30, 40]}]',
        '[{"label": "cup", "bbox_2d": [10.0, 20.0, 30.0, 40.0]}]',
    ],
)
def test_json_is_read_whole_or_as_far_as_it_goes(text: str) -> None:
    assert read(text, PIXELS) == [("cup", 10, 20, 30, 40)]
    assert read(text, OWN_CHOICE) == [("cup", 20, 20, 60, 40)]
    assert read(text, CONVENTIONS["qwen2_5_vl"]) == [("cup", 20, 40, 60, 80)]
    assert read(text, MARKS) == [], "the control: another spelling"


def test_labels_may_hold_anything() -> None:
    text = '[{"bbox_2d": [1, 2, 3, 4], "label": "a {cup} [1, 2, 3, 4]"}]'
    assert read(text, PIXELS) == [("a {cup} [1, 2, 3, 4]", 1, 2, 3, 4)]


def test_bare_lists_are_boxes_only_where_boxes_were_asked_for() -> None:
    for text in ("[10, 20, 30, 40]", "At [10, 20, 30, 40].", "[[10, 20, 30, 40]]"):
        assert read(text, PIXELS) == [(None, 10, 20, 30, 40)]
        assert read(text, PIXELS, bare=False) == []
    assert read("[10, 20, 30, 40][1, 2, 3, 4]", PIXELS) == [(None, 10, 20, 30, 40), (None, 1, 2, 3, 4)]
    assert read("The point [7, 8]", PIXELS) == [(None, 7, 8)]
    for text in ("[1, 2, 3]", "[true, 1, 2, 3]", '["1", "2"]', "no box", "", "[]", "{", "[NaN, 1, 2, 3]"):
        assert read(text, PIXELS) == []


def test_marks_are_read_with_their_names() -> None:
    box = "<|box_start|>(10,20),(30,40)<|box_end|>"
    named = f"<|object_ref_start|>cup<|object_ref_end|>{box}"
    assert read(f"A {named} and {box}, <|box_start|>(5, 6)<|box_end|>", MARKS) == [
        ("cup", 20, 20, 60, 40),
        (None, 20, 20, 60, 40),
        (None, 10, 6),
    ]
    assert read("(10,20),(30,40)", MARKS) == []


def test_one_name_may_have_several_boxes() -> None:
    text = "<ref>cup</ref><box>[[10, 20, 30, 40], [1, 2, 3, 4]]</box>\n<box>[5, 6, 7, 8]</box><box>[[1]]</box>"
    assert read(text, REFS) == [("cup", 20, 20, 60, 40), ("cup", 2, 2, 6, 4), (None, 10, 6, 14, 8)]


def test_bins_have_y_first() -> None:
    text = "<loc0512><loc0256><loc1023><loc0768> red cup ; <loc0000><loc0000><loc0256><loc0512> bus"
    assert read(text, LOCS) == [("red cup", 500, 500, 1500, 999.023), ("bus", 0, 0, 1000, 250)]
    assert read("<loc0512><loc0256><loc1023> cut off", LOCS) != []  # two of the three are a point
    assert read("<loc0512> cut off", LOCS) == []


def test_with_several_images_a_box_must_say_which() -> None:
    text = f'[{ONE}, {{"bbox_2d": [1, 2, 3, 4], "label": "bus", "image_id": 1}}]'
    assert read(text, PIXELS, images=2) == [("bus", 1, 2, 3, 4)]
    assert read(text.replace('"image_id": 1', '"image_id": 2'), PIXELS, images=2) == []
    assert len(read(text, PIXELS)) == 2, "with one image it goes without saying"
