"""ms-swift's grounding rows: `<ref-object>` and `<bbox>` are filled from the row's objects, or the row is a bad one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from support.datasets import write_image
from support.read_back import read_back
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.conversation import Named, Place, PlacedText, PlaceList
from vlm_lora.data.dataset import load_splits

OBJECTS = {"ref": ["sheep"], "bbox": [[4, 5, 20, 22], [20, 8, 30, 19]]}
"""For an image of 32x24 pixels, as `write_image` makes them."""


def chat(question: str, answer: str, images: Any = ("0.png",)) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "images": list(images)}


def sharegpt(question: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>{question}"}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, "images": ["0.png"]}


def pair(question: str, answer: str) -> dict[str, Any]:
    return {"question": question, "answer": answer, "images": ["0.png"]}


LAYOUTS = [chat, sharegpt, pair]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("written", [OBJECTS, json.dumps(OBJECTS)])
def test_marks_are_filled_in_order(layout: Any, written: Any, tmp_path: Path) -> None:
    row = {**layout("Find <ref-object>", "<bbox><bbox>"), "objects": written}
    read = read_back([row, row], tmp_path)
    assert read.told == [[["<0.png>", "Find sheep"], ["[4, 5, 20, 22][20, 8, 30, 19]"]]] * 2
    assert "objects: column 'objects' fills <ref-object> and <bbox>" in read.schema.explain()
    assert "numbers inside the data's own texts and set questions stay as they are" in read.schema.explain()
    assert "not used" not in read.schema.explain()


def test_questions_and_answers_of_all_turns_share_one_order(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "What is at <bbox>?"},
        {"role": "assistant", "content": "A <ref-object>."},
        {"role": "user", "content": "And <ref-object>?"},
        {"role": "assistant", "content": "At <bbox>, I think."},
    ]
    objects = {"ref": ["sheep", "dog"], "bbox": [[1, 2, 3, 4], [5, 6, 7, 8]]}
    row = {"messages": turns, "images": ["0.png"], "Objects": objects}
    assert read_back([row], tmp_path).told == [
        [["<0.png>", "What is at [1, 2, 3, 4]?"], ["A sheep."], ["And dog?"], ["At [5, 6, 7, 8], I think."]]
    ]


@pytest.mark.parametrize(
    ("objects", "answer"),
    [
        ({"bbox": [[8, 6]]}, "[8, 6]"),
        ({"bbox": [[0.1, 0.2, 0.5, 1.0]], "bbox_type": "norm1"}, "[3, 5, 16, 24]"),
        ({"bbox": [[0.5, 0.1]], "bbox_type": "norm1"}, "[16, 2]"),
        ({"bbox": [[1, 2, 3, 4]], "bbox_type": "real", "image_id": [0], "ref": []}, "[1, 2, 3, 4]"),
        ({"bbox": [[1, 2, 33, 25]]}, "[1, 2, 32, 24]"),
    ],
)
def test_points_and_shares_are_read_and_edges_clipped(objects: Any, answer: str, tmp_path: Path) -> None:
    assert read_back([{**chat("Where?", "<bbox>"), "objects": objects}], tmp_path).told[0][1] == [answer]


@pytest.mark.parametrize(
    ("question", "answer", "changed", "said"),
    [
        ("Find <ref-object>", "<bbox>", {}, "hold 1 <bbox>, and 'objects' has 2 under 'bbox'"),
        ("Find <ref-object>", "<bbox><bbox><bbox>", {}, "hold 3 <bbox>, and 'objects' has 2 under 'bbox'"),
        ("Find", "<bbox><bbox>", {}, "hold 0 <ref-object>, and 'objects' has 1 under 'ref'"),
        ("Find <ref-object>", "<bbox><bbox>", {"bbox_type": "norm1000"}, "bbox_type .* known are real, norm1"),
        ("Find <ref-object>", "<bbox><bbox>", {"bbox": [[1, 2, 3], [1, 2, 3, 4]]}, "bbox 1 .* is no box"),
        ("Find <ref-object>", "<bbox><bbox>", {"bbox": [[1, 2, 3, 4], [90, 2, 95, 4]]}, "bbox 2 .* outside the image"),
        ("Find <ref-object>", "<bbox><bbox>", {"bbox": [[1, 2, 3, 4], [90, 2]]}, "bbox 2 .* outside the image"),
        (
            "Find <ref-object>",
            "<bbox><bbox>",
            {"bbox": [[9, 2, 3, 4], [1, 2, 3, 4]]},
            "bbox 1 .* ends before it starts",
        ),
        ("Find <ref-object>", "<bbox><bbox>", {"image_id": [0]}, "2 under 'bbox' and 1 under 'image_id'"),
        ("Find <ref-object>", "<bbox><bbox>", {"image_id": [0, 1]}, "bbox 2 .* the row has 1 image, and the box has"),
        (
            "Find <ref-object>",
            "<bbox><bbox>",
            {"bbox": [[0.1, 0.1, 0.5, 0.5]] * 2},
            "normalised.*bbox_type real; known",
        ),
        ("Find <ref-object>", "<bbox><bbox>", {"ref": [7]}, "name under 'ref' is 7"),
        ("Find <ref-object>", "<bbox><bbox>", {"mask": [[1]]}, "holds 'mask', which is not read"),
        ("Find <ref-object>", "<bbox><bbox><quad>", {}, "Turn 2 .assistant. holds <quad>"),
    ],
)
def test_what_does_not_fit_is_a_bad_row(question: str, answer: str, changed: Any, said: str, tmp_path: Path) -> None:
    good = {**chat("Find <ref-object>", "<bbox><bbox>"), "objects": OBJECTS}
    bad = {**chat(question, answer), "objects": {**OBJECTS, **changed}}
    first, second = read_back([good, bad], tmp_path).told
    assert isinstance(first, list), "the control"
    assert isinstance(second, str)
    assert re.search(said, second), second


def test_with_several_images_each_box_names_its_own(tmp_path: Path) -> None:
    objects = {"ref": ["sheep"], "bbox": [[1, 2, 3, 4], [5, 6, 7, 8]], "image_id": [1, 0]}
    row = chat("Find <ref-object>", "<bbox> <bbox>", ["0.png", "1.png"])
    for number in range(2):
        write_image(tmp_path / f"{number}.png", seed=number)
    (tmp_path / "rows.jsonl").write_text(json.dumps({**row, "objects": objects}), encoding="utf-8")
    config = DataConfig(dataset_name=str(tmp_path / "rows.jsonl"), validation_fraction=0.0)
    train = load_splits(config, need_train=True, need_validation=False).train
    assert train is not None
    conversation = train[0]
    (part,) = conversation.turns[1].parts
    assert isinstance(part, PlacedText)
    first, _, second = part.pieces
    assert isinstance(first, Place)
    assert isinstance(second, Place)
    assert first.image is conversation.images[1]
    assert second.image is conversation.images[0]
    asked = conversation.turns[0].parts[-1]
    assert isinstance(asked, PlacedText)
    assert asked.pieces == ("Find ", Named(text="sheep"))
    for ids in (None, [0, 2], ["a", 0]):
        (told,) = read_back([{**row, "objects": {**objects, "image_id": ids}}], tmp_path).told
        assert "the row has 2 images, and the box has" in told
        assert "Write under 'image_id' which image it is of, counted from 0 (0 to 1)" in told


def test_a_list_of_accepted_answers_cannot_be_filled(tmp_path: Path) -> None:
    row = {"question": "Find <ref-object>", "answers": ["<bbox><bbox>", "<bbox>"], "image": "0.png", "objects": OBJECTS}
    single = {**row, "answers": ["<bbox><bbox>"]}
    one, several = read_back([single, row], tmp_path).told
    assert one[1] == ["[4, 5, 20, 22][20, 8, 30, 19]"]
    assert read_back([single], tmp_path).accepted == [()]
    assert "2 accepted answers hold marks such as <bbox>" in several


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("At [1, 2, 3, 4].", "[1, 2, 3, 4]"),
        ("At (0.1, 0.2, 0.3, 0.4)", "(0.1, 0.2, 0.3, 0.4)"),
        ('{"bbox_2d": [1, 2, 3, 4]}', "bbox_2d"),
        ("<box>1, 2, 3, 4</box>", "</box>"),
        ("<loc0001><loc0002><loc0003><loc0004> cup", "<loc0001>"),
        ("Four of them: 1, 2, 3, 4", None),
        ("Years [2001, 2002]", None),
    ],
)
def test_boxes_inside_texts_stay_and_that_is_said(layout: Any, answer: str, said: str | None, tmp_path: Path) -> None:
    read = read_back([layout("Where?", answer)], tmp_path)
    assert read.told[0][1] == [answer]
    told = read.schema.explain()
    assert (f"boxes that the texts write out ({said}) stay as they are" in told) is (said is not None)
    assert ("stay as they are" in told) is (said is not None)


def test_objects_that_no_mark_stands_for_make_a_bad_row(tmp_path: Path) -> None:
    row = {**chat("Find <ref-object>", "<bbox><bbox>"), "objects": OBJECTS}
    bare = {**chat("Find the sheep", "There."), "objects": OBJECTS}
    assert "The texts hold 0 <ref-object>, and 'objects' has 1 under 'ref'" in read_back([row, bare], tmp_path).told[1]
    left_out = read_back([bare], tmp_path, ignore_columns=("objects",))
    assert left_out.told == [[["<0.png>", "Find the sheep"], ["There."]]]


def test_what_else_a_turn_holds_is_kept_and_marks_in_thoughts_are_named(tmp_path: Path) -> None:
    row = {**chat("Find <ref-object>", "<bbox><bbox>"), "objects": OBJECTS}
    row["messages"][1]["reasoning_content"] = "Two of them."
    write_image(tmp_path / "0.png", seed=0)
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    config = DataConfig(dataset_name=str(tmp_path / "rows.jsonl"), validation_fraction=0.0)
    train = load_splits(config, need_train=True, need_validation=False).train
    assert train is not None
    assert train[0].turns[1].reasoning == "Two of them."
    row["messages"][1]["reasoning_content"] = "At <bbox>."
    assert "A turn's thoughts hold <ref-object> or <bbox>" in read_back([row], tmp_path).told[0]


def read_places(row: dict[str, Any], folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the images that a row shows, and of those that the places of its answer lie in."""
    for number in range(2):
        write_image(folder / f"{number}.png", seed=number)
    (folder / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    config = DataConfig(dataset_name=str(folder / "rows.jsonl"), validation_fraction=0.0)
    train = load_splits(config, need_train=True, need_validation=False).train
    assert train is not None
    conversation = train[0]
    (part,) = conversation.turns[-1].parts
    assert isinstance(part, PlacedText)
    places = [place.image for piece in part.pieces for place in places_in(piece)]
    shown = [Path(str(image.source)).name for image in conversation.images]
    return shown, [Path(str(image.source)).name for image in places if image is not None]


def places_in(piece: Any) -> list[Place]:
    if isinstance(piece, PlaceList):
        return [
            value for item in piece.items if isinstance(item, tuple) for _, value in item if isinstance(value, Place)
        ]
    return [piece] if isinstance(piece, Place) else []


def test_image_ids_count_all_images_of_a_row_that_brings_its_own(tmp_path: Path) -> None:
    asked = [{"type": "image", "image": "1.png"}, {"type": "image"}, {"type": "text", "text": "Find"}]
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": "<bbox><bbox>"}]
    objects = {"ref": [], "bbox": [[1, 2, 3, 4], [5, 6, 7, 8]], "image_id": [0, 1]}
    row = {"messages": turns, "images": ["0.png"], "objects": objects}
    assert read_places(row, tmp_path) == (["1.png", "0.png"], ["1.png", "0.png"])
    (told,) = read_back([{**row, "objects": {**objects, "image_id": None}}], tmp_path).told
    assert "the row has 2 images, and the box has no image_id" in told
    column = {**chat("<image_2> or <image_1>?", "<bbox><bbox>", ["0.png", "1.png"]), "objects": objects}
    assert read_places(column, tmp_path) == (["1.png", "0.png"], ["0.png", "1.png"]), "they count the column"


@pytest.mark.parametrize(
    ("question", "shown", "ids"),
    [("<image_2> or <image_1>?", ["1.png", "0.png"], [1, 0]), ("Where?", ["0.png", "1.png"], [0, 1])],
)
def test_an_answer_counts_images_as_they_are_shown(question: str, shown: Any, ids: Any, tmp_path: Path) -> None:
    objects = {"bbox": [[1, 2, 3, 4], [5, 6, 7, 8]], "label": ["a", "b"], "image_id": [0, 1]}
    row = {"question": question, "image": ["0.png", "1.png"], "objects": objects}
    assert read_places(row, tmp_path) == (shown, ["0.png", "1.png"])
    found = json.loads(read_back([row], tmp_path).told[0][1][0])
    assert [item["image_id"] for item in found] == ids
