"""Boxes: formats, clipping, names of categories, and what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from support.datasets import encode_png, write_jsonl
from vlm_lora.config.run_config import BOX_FORMATS, DataConfig
from vlm_lora.data.dataset import Conversations, load_splits
from vlm_lora.data.images.loader import ImageLimits, load_image, read_size
from vlm_lora.data.ocr.boxes import BoxReading, answer_boxes, check_size, holds_boxes, read_box
from vlm_lora.errors import ConfigError, DataError, ImageError

SIZE = (100, 50)
GOOD = {"bbox": [[1, 2, 3, 4]], "category": ["mask"]}


def answer(value: Any, **options: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(answer_boxes(value, BoxReading(column="objects", **options), [SIZE]).text)
    return found


@pytest.mark.parametrize(
    ("box", "style", "expected"),
    [
        ([10, 20, 30, 10], "xywh", (10, 20, 40, 30)),
        ([10, 20, 30, 40], "xyxy", (10, 20, 30, 40)),
        ([9.6, 20.4, 30.0, 10.2], "xywh", (10, 20, 40, 31)),
        ([-2, -2, 20, 20], "xywh", (0, 0, 18, 18)),
        ([90, 40, 12, 11.6], "xywh", (90, 40, 100, 50)),
        ([0, 0, 1, 1], "xyxy", (0, 0, 1, 1)),
        ([10, 20, 0.3, 10], "xywh", (10, 20, 11, 30)),
        ([99.6, 10, 101, 20], "xyxy", (99, 10, 100, 20)),
        ([0, 0, 100, 50], "xyxy", (0, 0, 100, 50)),
    ],
)
def test_boxes_become_corners_in_whole_pixels_of_the_image(box: list[float], style: str, expected: Any) -> None:
    assert read_box(box, style, SIZE) == expected


@pytest.mark.parametrize(
    ("box", "style", "size", "said"),
    [
        (
            [400, 300, 600, 450],
            "xywh",
            (640, 480),
            r"\[400, 300, 600, 450\], read as left, top, width, height in pixels, reaches from 400, 300 to "
            r"1000, 750 and sticks out of the image of 640x480 pixels by 360; allowed are 6\.4",
        ),
        ([-3, 2, 50, 40], "xyxy", SIZE, "sticks out .* by 3; allowed are 2"),
        ([2, 2, 50, 52.5], "xyxy", SIZE, r"sticks out .* by 2\.5; allowed are 2"),
        ([0.1, 0.2, 0.3, 0.4], "xyxy", SIZE, r"looks normalised; .* Multiply x .* \(100x50\)"),
        ([0.0, 0.0, 1.0, 1.0], "xywh", None, "looks normalised"),
        ([10, 20, 0, 10], "xywh", SIZE, "has no width or height"),
        ([10, 20, 30, 20], "xyxy", None, "has no width or height"),
    ],
)
def test_boxes_of_another_format_or_image_are_refused(
    box: list[float], style: str, size: tuple[int, int] | None, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        read_box(box, style, size)
    if size is not None:
        with pytest.raises(
            DataError, match=rf"Box 1 in column 'objects': .*{said}.*\(--box_format {style}; allowed are"
        ):
            answer_boxes({"bbox": [box], "category": ["a"]}, BoxReading(column="objects", format=style), [size])


@pytest.mark.parametrize(
    ("box", "style", "expected"),
    [
        ([25, 25, 30, 10], "cxcywh", (10, 20, 40, 30)),
        ([0.1, 0.4, 0.3, 0.2], "relative_xywh", (10, 20, 40, 30)),
        ([0.1, 0.4, 0.4, 0.6], "relative_xyxy", (10, 20, 40, 30)),
        ([0.25, 0.5, 0.3, 0.2], "relative_cxcywh", (10, 20, 40, 30)),
        ([0, 0, 1, 1], "relative_xyxy", (0, 0, 100, 50)),
        ([0.5, 0.5, 1.01, 1.0], "relative_cxcywh", (0, 0, 100, 50)),
    ],
)
def test_centres_and_shares_of_the_sides_are_read(box: list[float], style: str, expected: Any) -> None:
    assert read_box(box, style, SIZE) == expected
    for other in set(BOX_FORMATS) - {style}:
        try:
            read = read_box(box, other, SIZE)
        except DataError:
            continue
        assert read != expected or {style, other} == {"relative_xywh", "relative_xyxy"}, "the control"


@pytest.mark.parametrize("style", ["relative_xywh", "relative_xyxy", "relative_cxcywh"])
def test_numbers_above_one_are_no_shares(style: str) -> None:
    with pytest.raises(DataError, match=r"numbers outside 0 to 1, so it is in pixels, or in another unit\."):
        read_box([0.2, 0.2, 30, 0.4], style, SIZE)


@pytest.mark.parametrize("flat", [[10, 20, 10, 20], [10.4, 5, 10.4, 9], [0.0, 0.0, 0.0, 0.0]])
def test_text_recognition_may_give_blanks_no_width(flat: list[float]) -> None:
    found = read_box(flat, "xyxy", SIZE, may_be_flat=True)
    assert found == tuple(round(end) for end in flat)
    with pytest.raises(DataError, match="has no width or height"):
        read_box(flat, "xyxy", SIZE)


def test_the_edge_of_a_large_image_is_a_share_of_its_side() -> None:
    assert read_box([-6, 100, 646, 484], "xyxy", (640, 480)) == (0, 100, 640, 480)
    with pytest.raises(DataError, match="sticks out"):
        read_box([-7, 100, 640, 480], "xyxy", (640, 480))


@given(st.lists(st.floats(-300, 300), min_size=4, max_size=4), st.sampled_from(["xywh", "xyxy"]), st.integers(1, 200))
def test_any_box_lies_in_the_image_or_is_refused(box: list[float], style: str, side: int) -> None:
    try:
        left, top, right, bottom = read_box(box, style, (side, 50))
    except DataError:
        return
    assert 0 <= left < right <= side
    assert 0 <= top < bottom <= 50


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"bbox": [[1, 2, 3]], "category": ["a"]}, r"Box 1 in column 'objects': \[1, 2, 3\] is no box"),
        ({"bbox": [[1, 2, 3, None]], "category": ["a"]}, "is no box"),
        ({"bbox": [[1, 2, 3, float("nan")]], "category": ["a"]}, "is no box"),
        ({"bbox": [[1, 2, 3, 4], [5, 5, -1, 3]], "category": ["a", "b"]}, "Box 2 .* ends before it starts"),
        ({"bbox": [[200, 2, 3, 4]], "category": ["a"]}, "lies outside the image of 100x50 pixels.*--box_format xywh"),
        ({"bbox": [[1, 2, 3, 4]], "category": ["a", "b"]}, "1 boxes and 2 categories"),
        ({"bbox": [[1, 2, 3, 4]], "category": [3]}, "the number 3, and the data names no categories.*--box_labels"),
        ({"bbox": [[1, 2, 3, 4]], "category": [None]}, "neither a name nor a whole number"),
        ({"bbox": [[1, 2, 3, 4]], "category": [" "]}, "Box 1 .* the category is an empty text"),
        ({"bbox": [[1, 2, 3, 4]], "category": [True]}, "neither a name nor a whole number"),
        ({"bbox": [1, 2, 3, 4], "category": "a"}, "wanted is"),
        ({"area": [4]}, "wanted is"),
        ([{"bbox": [1, 2, 3, 4], "category": "a"}, {"bbox": [1, 2, 3, 4]}], "Box 2 .* wanted is"),
        (None, "Column 'objects' holds None"),
    ],
)
def test_what_is_no_box_is_named(value: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        answer(value)


def test_categories_by_number_take_their_names() -> None:
    value = {"bbox": [[1, 2, 3, 4], [1, 2, 3, 4]], "category": [1, 0]}
    assert [found["label"] for found in answer(value, names=("mask", "glove"))] == ["glove", "mask"]
    for number in (2, -1):
        with pytest.raises(DataError, match=f"category {number} is not one of the 2 names"):
            answer({"bbox": [[1, 2, 3, 4]], "category": [number]}, names=("mask", "glove"))


@pytest.mark.parametrize("keys", [("category_id", "category_name"), ("category_name", "category_id")])
def test_a_name_beside_a_number_wins(keys: tuple[str, str]) -> None:
    named = {"category_id": 3, "category_name": "mask"}
    item = {"bbox": [1, 2, 3, 4], **{key: named[key] for key in keys}}
    lists = {key: [value] for key, value in item.items()}
    both: list[Any] = [[item], lists]
    for value in both:
        assert [found["label"] for found in answer(value)] == ["mask"]
        assert [found["label"] for found in answer(value, names=("a", "b", "c", "d"))] == ["mask"]
    # Without a name, or with one that Arrow filled in as null, the number counts.
    nameless: list[Any] = [[{**item, "category_name": None}], {**lists, "category_name": [None]}]
    for value in nameless:
        assert [found["label"] for found in answer(value, names=("a", "b", "c", "d"))] == ["d"]
        with pytest.raises(DataError, match="the number 3, and the data names no categories"):
            answer(value)


def test_numbers_are_those_that_the_names_were_declared_for(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "image": datasets.Value("string"),
            "objects": {
                "bbox": datasets.Sequence(datasets.Sequence(datasets.Value("float32"), length=4)),
                "label": datasets.Sequence(datasets.Value("int64")),
                "category_id": datasets.Sequence(datasets.ClassLabel(names=["mask", "glove"])),
            },
        }
    )
    (tmp_path / "a.png").write_bytes(encode_png(Image.new("RGB", SIZE)))
    objects = [{"bbox": [[1, 2, 3, 4]], "label": [0], "category_id": [1]}]
    made = datasets.Dataset.from_dict({"image": ["a.png"], "objects": objects}, features=features)
    made.to_parquet(tmp_path / "train.parquet")

    def label(**config: Any) -> str:
        given = DataConfig(dataset_name=str(tmp_path / "train.parquet"), validation_fraction=0.0, **config)
        data = load_splits(given, need_train=True, need_validation=False).train
        assert data is not None
        found: str = json.loads(data[0].turns[-1].text)[0]["label"]
        return found

    assert label() == "glove"
    # The control: names that are set are for the first key.
    assert label(box_labels=("a", "b"), ignore_keys=("category_id",)) == "a"
    with pytest.raises(DataError, match="have 'category_id', which is not read"):
        answer(objects[0], names=("a", "b"))


def test_answers_are_json_whatever_the_labels_hold() -> None:
    label = 'a "quoted" label, größer\n\\'
    found = answer_boxes({"bbox": [[1, 2, 3, 4]], "label": [label]}, BoxReading(column="objects"), [SIZE]).text
    assert "größer" in found
    assert "\n" not in found
    assert json.loads(found) == [{"bbox_2d": [1, 2, 4, 6], "label": label}]


def test_columns_of_boxes_are_told_from_others() -> None:
    assert holds_boxes(GOOD)
    assert holds_boxes([{"bbox": [1, 2, 3, 4], "label": "a"}])
    for value in ([], {}, "text", [{"bbox": [1, 2, 3, 4], "text": "a"}], {"bbox": [[1, 2, 3, 4]]}, None, [1, 2, 3, 4]):
        assert not holds_boxes(value)


def test_an_image_of_another_size_is_refused() -> None:
    check_size((100, 50), SIZE)
    check_size((None, None), SIZE)
    with pytest.raises(DataError, match=r"for an image of 200x100 pixels .* the image has 100x50"):
        check_size((200, 100), SIZE)
    with pytest.raises(DataError, match="turned by its EXIF orientation"):
        check_size((50, 100), SIZE)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_sizes_are_those_of_the_image_shown_upright(orientation: int, kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.new("RGB", (30, 20)).save(stream, kind, exif=exif)
    path = tmp_path / "a"
    path.write_bytes(stream.getvalue())
    for source in (stream.getvalue(), path):
        assert read_size(source) == load_image(source, limits=ImageLimits()).size
        assert read_size(source) == ((20, 30) if orientation > 4 else (30, 20))
    with pytest.raises(ImageError, match="size cannot be read"):
        read_size(b"no picture")


def test_a_png_that_is_not_turned_is_not_decoded_for_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = encode_png(Image.new("RGB", SIZE))
    (tmp_path / "a.png").write_bytes(encoded)
    decoded: list[Any] = []
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", decoded.append)
    assert read_size(encoded) == read_size(tmp_path / "a.png") == SIZE
    assert not decoded


def load(tmp_path: Path, row: dict[str, Any], **config: Any) -> Conversations:
    (tmp_path / "a.png").write_bytes(encode_png(Image.new("RGB", SIZE)))
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    data = load_splits(
        DataConfig(dataset_name=str(path), validation_fraction=0.0, **config), need_train=True, need_validation=False
    ).train
    assert data is not None
    return data


def test_flags_name_column_format_labels_and_question(tmp_path: Path) -> None:
    row = {"image": "a.png", "found": {"bbox": [[1, 2, 3, 4]], "category": [1]}, "objects": GOOD}
    flags = {"boxes_column": "found", "box_format": "xyxy", "box_labels": ("a", "b"), "box_prompt": "Where?"}
    turns = load(tmp_path, row, **flags)[0].turns
    assert [turn.text for turn in turns] == ["Where?", '[{"bbox_2d": [1, 2, 3, 4], "label": "b"}]']
    with pytest.raises(DataError, match=r"2 columns that could be the boxes: 'found', 'objects'\. Type --boxes_column"):
        load(tmp_path, row)
    with pytest.raises(ConfigError, match="--box_format yolo: allowed are xywh, xyxy, cxcywh, relative_xywh"):
        DataConfig(box_format="yolo")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"image": "a.png", "objects": GOOD, "question": "q", "answer": "a"},
            "Type --boxes_column objects, or --prompt",
        ),
        ({"image": "a.png", "objects": GOOD, "text": {"text": "a"}}, "--boxes_column objects, or --page_column text"),
        ({"objects": GOOD}, "no other column could be taken as the image"),
    ],
)
def test_what_could_be_meant_otherwise_is_asked(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        load(tmp_path, row)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image": "a.png", "objects": GOOD, "width": 200, "height": 100}, "for an image of 200x100"),
        ({"image": "a.png", "objects": GOOD, "width": 200.0, "height": 100.0}, "for an image of 200x100"),
        ({"image": "a.png", "objects": GOOD, "width": "200.0", "height": "100"}, "for an image of 200x100"),
        ({"image": ["a.png", "a.png"], "objects": GOOD}, "the row has 2 images, and the box has no image_id"),
        ({"image": None, "objects": GOOD}, "marks an image, and the row has none"),
        (
            {"image": "a.png", "text": {"lines": [{"text": "a", "bbox": [150, 2, 160, 4]}]}},
            "Item 1 of 'lines': .*outside",
        ),
        ({"image": "a.png", "json": {"text": {"text": "a"}, "image": {"width": 9, "height": 9}}}, "image of 9x9"),
    ],
)
def test_rows_that_cannot_be_used_name_file_and_row(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    flags = {} if row.get("image") else {"image_column": "image"}
    with pytest.raises(DataError, match=rf"rows\.jsonl row 0 \(line 1\): .*{said}"):
        load(tmp_path, row, **flags)[0]


@pytest.mark.parametrize("size", [(100, 50), (100.0, 50.0), ("100", "50.0"), (8.5, 11.0), ("wide", None)])
def test_the_images_own_size_in_any_writing_is_no_fault(tmp_path: Path, size: tuple[Any, Any]) -> None:
    width, height = size
    for row in (
        {"image": "a.png", "objects": GOOD, "width": width, "height": height},
        {"image": "a.png", "json": {"text": {"text": "a"}, "image": {"width": width, "height": height}}},
    ):
        assert load(tmp_path, row)[0].turns[-1].text


def test_an_explicit_mapping_wins_over_boxes(tmp_path: Path) -> None:
    row = {"image": "a.png", "objects": GOOD, "question": "q", "answer": "a"}
    assert load(tmp_path, row, prompt_column="question")[0].turns[-1].text == "a"
    assert load(tmp_path, row, boxes_column="objects")[0].turns[-1].text.startswith("[{")
    assert load(tmp_path, row, boxes_column="objects", prompt_column="question")[0].turns[0].text == "q"
    with pytest.raises(DataError, match=r"--boxes_column says .* does not go with --response_column"):
        load(tmp_path, row, boxes_column="objects", response_column="answer")


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ({"label": "red cup"}, "label"),
        ({"boxes": [5, 6, 7, 8]}, "boxes"),
        ({"ref": "the cup"}, "ref"),
        ({"attributes": ["red"]}, "attributes"),
        ({"label": "cup", "bboxes": [1, 2, 3, 4], "category_id": 3, "ref": "cup", "label_id": 4, "box": None}, None),
    ],
)
def test_a_second_key_that_says_something_else_is_named(others: dict[str, Any], named: str | None) -> None:
    item = {"bbox": [1, 2, 3, 4], "category": "cup", **others}
    values: list[Any] = [[item], {key: [held] for key, held in item.items()}]
    for value in values:
        if named is None:
            assert answer(value) == [{"bbox_2d": [1, 2, 4, 6], "label": "cup"}]
            continue
        with pytest.raises(DataError, match=f"have '{named}', which is not read.*--ignore_keys {named} to leave"):
            answer(value)
        assert answer(value, ignored=(named,)) == [{"bbox_2d": [1, 2, 4, 6], "label": "cup"}]
    assert answer([{**item, "label": "red cup"}], ignored=("category", "ref", "attributes", "boxes"))[0]["label"] == (
        "red cup"
    ), "what is left out makes room for the other"


def test_second_keys_are_named_before_the_first_row_is_read(tmp_path: Path) -> None:
    row = {"image": "a.png", "objects": [{"bbox": [1, 2, 3, 4], "category": "cup", "label": "red cup"}]}
    with pytest.raises(DataError, match=r"has the key 'label' \('red cup'\).*type --ignore_keys label"):
        load(tmp_path, row)
    assert '"label": "red cup"' in load(tmp_path, row, ignore_keys=("category",))[0].turns[-1].text


@pytest.mark.parametrize("several", [False, True])
def test_boxes_say_no_other_format_than_they_are_read_in(several: bool) -> None:
    def given(kind: Any) -> Any:
        if several:
            return [{"bbox": [1, 2, 3, 4], "label": "cup", "bbox_type": kind}]
        return {"bbox": [[1, 2, 3, 4]], "label": ["cup"], "ref": ["cup"], "bbox_type": kind}

    assert answer(given("real"), format="xyxy") == [{"bbox_2d": [1, 2, 3, 4], "label": "cup"}]
    assert (
        answer(given(None))
        == answer(given("real"), ignored=("bbox_type",))
        == [{"bbox_2d": [1, 2, 4, 6], "label": "cup"}]
    )
    for kind, style in (("real", "xyxy"), ("norm1", "relative_xyxy")):
        with pytest.raises(DataError, match=f"bbox_type '{kind}', --box_format {style}, and are read as --box_format"):
            answer(given(kind))
    with pytest.raises(DataError, match=r"bbox_type 'polar'.*known as real, norm1 alone.*--ignore_keys bbox_type"):
        answer(given("polar"))
