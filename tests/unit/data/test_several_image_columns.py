"""Images in several columns: all in order, one of two by row, or an error that says what to type. None is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from support.datasets import draw_chart, encode_png, write_image, write_jsonl
from support.read_back import read_back
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.columns.schema import find_image_column
from vlm_lora.data.dataset import ConversationDataset, load_splits
from vlm_lora.errors import DataError

ASKED = {"question": "q", "answer": "a"}
BOTH = [["<0.png>", "<1.png>", "q"], ["a"]]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        *[
            ("image_1", "image_2"),
            ("image", "image2"),
            ("image1", "image 2"),
            ("img-1", "img-2"),
            ("Image_0", "image_1"),
        ],
        *[("image_path_1", "image_path_2"), ("picture", "picture_2")],
        *[("left_image", "right_image"), ("image_left", "image_right"), ("before", "after"), ("image_a", "image_b")],
    ],
)
def test_columns_that_name_an_order_are_read_in_it(first: str, second: str, tmp_path: Path) -> None:
    row = {second: "1.png", first: "0.png", **ASKED}  # the order of the names counts, not that of the columns
    found = read_back([row], tmp_path)
    assert found.told == [BOTH]
    assert f"image: columns '{first}', '{second}', in this order" in found.schema.explain()


def test_ten_columns_are_in_the_order_of_their_numbers_and_empty_ones_are_none(tmp_path: Path) -> None:
    row: dict[str, Any] = {f"image_{number}": None for number in range(1, 11)}
    rows = [{**row, "image_2": "1.png", "image_10": "0.png", **ASKED}, {**row, "image_1": "2.png", **ASKED}]
    assert read_back(rows, tmp_path).told == [[["<1.png>", "<0.png>", "q"], ["a"]], [["<2.png>", "q"], ["a"]]]


@pytest.mark.parametrize("first", ["image", "image_1"])
def test_a_column_that_is_empty_in_the_first_rows_is_read_in_later_ones(first: str, tmp_path: Path) -> None:
    rows = [{first: "0.png", "image_2": None, **ASKED}] * 120
    found = read_back([*rows, {**rows[0], "image_2": "1.png"}], tmp_path).told
    assert (found[0], found[120]) == ([["<0.png>", "q"], ["a"]], BOTH)


@pytest.mark.parametrize("form", ["front,side", "side,front"])
def test_the_flag_names_any_columns_in_any_order(form: str, tmp_path: Path) -> None:
    rows = [{"front": "0.png", "side": ["1.png", "2.png"], **ASKED}]
    shown = {"front": ["<0.png>"], "side": ["<1.png>", "<2.png>"]}
    expected = [*(image for column in form.split(",") for image in shown[column]), "q"]
    assert read_back(rows, tmp_path, image_column=form).told == [[expected, ["a"]]]
    with pytest.raises(DataError, match=r"2 columns that could be the image: 'front', 'side'"):
        read_back(rows, tmp_path)
    with pytest.raises(DataError, match=r"--image_column back: .* has no such column"):
        read_back(rows, tmp_path, image_column="front,back")


def test_a_column_with_a_comma_in_its_name_is_one(tmp_path: Path) -> None:
    assert read_back([{"a,b": "0.png", **ASKED}], tmp_path, image_column="a,b").told == [[["<0.png>", "q"], ["a"]]]


def test_image_in_some_rows_and_images_in_others(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}]
    rows: list[dict[str, Any]] = [{"image": "0.png", "conversations": turns} for _ in range(120)]
    rows[1:2] = [{"images": ["0.png"], "conversations": turns}]
    rows[110] = {"images": ["1.png"], "image": "0.png", "conversations": turns}  # behind what detection looks at
    found = read_back(rows, tmp_path).told
    assert [told for number, told in enumerate(found) if number != 110] == [[["<0.png>", "q"], ["a"]]] * 119
    assert "row 110 (line 111): The row has images in 'image', 'images'" in found[110]
    assert "--image_column image images to show all" in found[110]


def test_a_series_beside_an_image_is_asked_about(tmp_path: Path) -> None:
    row = {"image": "0.png", "left_view": "1.png", "right_view": "2.png", **ASKED}
    with pytest.raises(DataError, match=r"images in 'left_view', 'right_view' and in 'image'\. Type --image_column"):
        read_back([row], tmp_path)
    found = read_back([row], tmp_path, image_column="image,right_view").told
    assert found == [[["<0.png>", "<2.png>", "q"], ["a"]]]


def test_a_tar_takes_the_images_of_one_column(tmp_path: Path) -> None:
    write_image(tmp_path / "0.png", seed=0)
    data = write_jsonl(tmp_path / "rows.jsonl", [{"image_1": "0.png", "image_2": "0.png", **ASKED}])
    config = DataConfig(dataset_name=str(data), validation_fraction=0.0)
    train = load_splits(config, need_train=True, need_validation=False).train
    assert isinstance(train, ConversationDataset)
    with pytest.raises(DataError, match="'image_1', 'image_2' all hold images, and a tar takes those of one column"):
        find_image_column(train.rows, config)


def test_another_column_of_encoded_images_is_not_passed_over(tmp_path: Path) -> None:
    """Names of files next to an image most often are its own, and stay unread."""
    picture = {"bytes": encode_png(draw_chart(0, (32, 24))[0]), "path": None}

    table = Dataset.from_list([{"image": picture, "mask": picture, "file_name": "0.png", **ASKED}])
    table.to_parquet(str(tmp_path / "rows.parquet"))
    said = r"in addition to 'image' 'mask' hold images\..*--image_column image mask; to leave them out, --image_c"
    with pytest.raises(DataError, match=said):
        read_back(tmp_path / "rows.parquet", tmp_path)
    one = read_back(tmp_path / "rows.parquet", tmp_path, image_column="image").told
    two = read_back(tmp_path / "rows.parquet", tmp_path, image_column="image,mask").told
    assert [len(told[0]) for told in (*one, *two)] == [2, 3]
