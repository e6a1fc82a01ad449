"""Samples of tars as rows: columns, keys, what is missing, what is refused, what is kept between runs."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from support.datasets import draw_chart, encode_png
from support.tars import chart_members, write_chart_tar, write_tar
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data import cache_folder
from vlm_lora.data.dataset import ConversationDataset, load_splits
from vlm_lora.data.formats.rows import Rows
from vlm_lora.data.formats.tar import index_files, packed, samples
from vlm_lora.data.formats.tar.index import build_index
from vlm_lora.data.images.loader import ImageLimits, load_image
from vlm_lora.data.sources.named import open_source
from vlm_lora.errors import DataError, ImageError

PNG = encode_png(draw_chart(1)[0])


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache_folder.VARIABLE, str(tmp_path / "cache"))


def rows_of(path: Path | str, split: str = "train") -> Rows:
    return open_source(str(path)).splits[split]


def one_row(tmp_path: Path, *members: tuple[str, bytes]) -> Mapping[str, Any]:
    rows = rows_of(write_tar(tmp_path / "a.tar", members))
    assert len(rows) == 1
    assert set(rows[0]) <= set(rows.columns)
    return rows[0]


def test_json_fields_and_the_image_are_columns(tmp_path: Path) -> None:
    row = one_row(tmp_path, ("f/a.JSON", b'{"question": "q", "n": 1}'), ("f/a.PNG", PNG))
    assert row == {"question": "q", "n": 1, "image": PNG, "__key__": "f/a"}


@pytest.mark.parametrize(("image", "column"), [("d0.png", "image"), ("d0.page.png", "page.png")])
def test_names_with_a_second_dot(tmp_path: Path, image: str, column: str) -> None:
    """As the OCR tool's shards have them: its own reader takes any member that ends in .json, and in .png."""
    page = {"text": {"lines": [{"text": "a", "bbox": [0, 0, 9, 9]}], "text": "a"}}
    tar = write_tar(tmp_path / "a.tar", [("d0.ocr.json", json.dumps(page).encode()), (image, PNG)])
    assert rows_of(tar)[0] == {**page, column: PNG, "__key__": "d0"}
    data = load_splits(
        DataConfig(dataset_name=str(tar), validation_fraction=0.0), need_train=True, need_validation=False
    )
    assert isinstance(data.train, ConversationDataset)
    assert (data.train.schema.image, data.train[0].turns[-1].text) == (column, "a")


def test_json_that_is_no_object_texts_and_named_images(tmp_path: Path) -> None:
    members = [("a.json", b"[1, 2]"), ("a.txt", "grün".encode()), ("a.cls", b"3"), ("a.left.png", PNG)]
    row = one_row(tmp_path, *members)
    assert row == {"json": [1, 2], "txt": "grün", "cls": "3", "left.png": PNG, "__key__": "a"}


def test_numbered_images_are_a_list_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    pictures = {number: encode_png(draw_chart(number)[0]) for number in (0, 2, 10)}
    members = [("a.json", b"{}"), *((f"a.{number}.png", pictures[number]) for number in (10, 0, 2))]
    assert one_row(tmp_path, *members)["images"] == [pictures[0], pictures[2], pictures[10]]


def test_one_numbered_sample_makes_lists_of_all_images_of_the_split(tmp_path: Path) -> None:
    write_tar(tmp_path / "s" / "a.tar", [("a.json", b'{"x": 1}'), ("a.png", PNG)])
    write_tar(tmp_path / "s" / "b.tar", [("b.json", b'{"x": 1}'), ("b.0.png", PNG), ("b.1.png", PNG)])
    rows = rows_of(tmp_path / "s")
    assert [len(rows[number]["images"]) for number in range(2)] == [1, 2]
    assert "image" not in rows.columns


def test_fields_called_as_the_image_are_kept_under_another_name(tmp_path: Path) -> None:
    record = {"image": {"width": 4, "height": 3}, "__key__": "k", "txt": 1, "image_info": "mine"}
    row = one_row(tmp_path, ("a.json", json.dumps(record).encode()), ("a.png", PNG), ("a.txt", b"t"))
    assert row == {
        "image": PNG,
        "image_info_": {"width": 4, "height": 3},
        "image_info": "mine",
        "__key__": "a",
        "__key___info": "k",
        "txt": "t",
        "txt_info": 1,
    }


def test_a_run_takes_the_image_and_messages_name_tar_and_key(tmp_path: Path) -> None:
    tar = write_chart_tar(tmp_path / "train.tar", range(4))
    data = load_splits(
        DataConfig(dataset_name=str(tar), validation_fraction=0.0), need_train=True, need_validation=False
    )
    assert isinstance(data.train, ConversationDataset)
    assert data.train.schema.image == "image"
    assert str(data.train.source(2)) == f"{tar} row 2 (key 000002)"
    assert data.train[2].images[0].source == dict(chart_members(2))["000002.png"]
    assert len(pickle.loads(pickle.dumps(data.train))) == 4


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("a.json", b"{}")], "a has no image"),
        ([("a.png", PNG)], "a has an image and no JSON or text"),
        ([("a.json", b"{}"), ("a.png", PNG), ("b.png", PNG)], "1 of 2 samples.*b has an image and no JSON"),
        ([("a.json", b"{}"), ("a.png", PNG), ("A.json", b"{}")], "A has no image"),
        ([("a.json", b"{}"), ("a.png", PNG), ("a.jpg", PNG)], "a has two images"),
        ([("a.json", b"{}"), ("a.png", PNG), ("a.0.png", PNG)], "numbered image and one without"),
        ([("a.json", b"{}"), ("a.0.png", PNG), ("a.00.png", PNG)], "two images of one number"),
        ([("a.json", b"{}"), ("a.png", PNG), ("a.PNG", PNG)], r"1 members are there twice: a\.png"),
        ([("a.json", b"{}"), ("a.png", PNG), ("a.json", b"{}")], r"twice: a\.json"),
        ([("a.json", b"{"), ("a.png", PNG)], r"row 0 \(key a\): \.json: not JSON"),
        ([("a.json", b"[" * 100_000), ("a.png", PNG)], r"row 0 \(key a\): \.json: not JSON"),
        ([("a.json", b'"\xff"'), ("a.png", PNG)], r"\(key a\): \.json: not UTF-8"),
        ([("a.txt", b"\xff"), ("a.png", PNG)], r"\(key a\): \.txt: not UTF-8 text"),
        ([("a.1.json", b"{}"), ("a.2.json", b"{}"), ("a.png", PNG)], r"has 2 JSON members \(\.1\.json and \.2\.json\)"),
        (
            [("a.json", b"{}"), ("a.ocr.json", b"{}"), ("a.png", PNG)],
            r"\(\.json and \.ocr\.json\).*ends at the first dot",
        ),
        ([("a.ocr.json", b"{"), ("a.png", PNG)], r"row 0 \(key a\): \.ocr\.json: not JSON"),
    ],
)
def test_unusable_samples_are_named_with_tar_and_key(
    tmp_path: Path, members: list[tuple[str, bytes]], said: str
) -> None:
    with pytest.raises(DataError, match=rf"a\.tar.*{said}"):
        rows_of(write_tar(tmp_path / "a.tar", members))


class _Marker:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("extension", ["pkl", "pickle", "PKL", "pth", "pt", "npy", "npz", "pyd", "joblib", "mask.npy"])
def test_pickles_are_refused_by_name_and_never_run(tmp_path: Path, extension: str) -> None:
    marker = tmp_path / "was-run"
    hostile = pickle.dumps(_Marker(marker))
    members = [("a.json", b"{}"), ("a.png", PNG), (f"a.{extension}", hostile)]
    with pytest.raises(DataError, match=rf"key a: the member 'a\.{extension}' is refused.*run code"):
        rows_of(write_tar(tmp_path / "a.tar", members))
    assert not marker.exists()
    pickle.loads(hostile)
    assert marker.exists(), "it would have run"


@pytest.mark.parametrize("name", ["a.json", "a.txt", "a.cls"])
def test_pickles_called_text_are_refused_and_never_run(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "was-run"
    members = {"a.json": b"{}", "a.png": PNG, name: pickle.dumps(_Marker(marker))}
    with pytest.raises(DataError, match="not UTF-8"):
        rows_of(write_tar(tmp_path / "a.tar", members.items()))
    assert not marker.exists()


@pytest.mark.parametrize("name", ["a.png", "a.0.png", "a.bin"])
def test_pickles_called_images_are_never_run(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "was-run"
    members = {"a.json": b"{}", "a.png": PNG, name: pickle.dumps(_Marker(marker))}
    if name == "a.0.png":
        del members["a.png"]
    row = rows_of(write_tar(tmp_path / "a.tar", members.items()))[0]
    picture = row["images"][0] if name == "a.0.png" else row["image"]
    if name == "a.bin":
        assert picture == PNG
    else:
        with pytest.raises(ImageError, match="not a readable image"):
            load_image(picture, limits=ImageLimits())
    assert not marker.exists()


def test_other_members_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    extra = [("a.mp4", b"x"), (".hidden", b"x"), ("README", b"x"), ("__MACOSX/a.png", b"x"), ("._a.png", b"x")]
    row = one_row(tmp_path, ("a.json", b'{"x": 1}'), ("a.png", PNG), *extra)
    assert set(row) == {"x", "image", "__key__"}
    assert "1 members left out: .mp4" in caplog.text
    assert "4 members left out: hidden" in caplog.text


def test_members_have_a_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = [("a.json", b'{"x": "0123456789"}'), ("a.png", PNG)]
    monkeypatch.setattr(samples, "LARGEST_TEXT", 19)
    assert one_row(tmp_path, *members)["x"] == "0123456789"
    (tmp_path / "a.tar.index.json").unlink()
    monkeypatch.setattr(samples, "LARGEST_TEXT", 18)
    with pytest.raises(DataError, match=r"'a\.json' is refused: 19 bytes, more than the 18"):
        one_row(tmp_path, *members)


@pytest.mark.parametrize("ending", [".tar.gz", ".tgz", ".TAR.GZ"])
def test_packed_tars_are_unpacked_once(
    tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", logger="vlm_lora")
    plain = write_chart_tar(tmp_path / "plain.tar", range(3))
    whole = gzip.compress(plain.read_bytes())
    path = tmp_path / f"train-0{ending}"
    path.write_bytes(whole)
    rows = rows_of(path)
    assert [rows[n] for n in range(3)] == [rows_of(plain)[n] for n in range(3)]
    assert str(rows.source(1)) == f"{path} row 1 (key 000001)"
    assert "is unpacked to" in caplog.text
    caplog.clear()
    rows_of(path)
    assert "is unpacked to" not in caplog.text
    for broken, said in ((whole[:-50], "cut off or damaged"), (b"nonsense", "cut off or damaged")):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=rf"{path.name} is {said}"):
            rows_of(path)
    monkeypatch.setattr(packed, "ALWAYS_ALLOWED", 1000)
    monkeypatch.setattr(packed, "LARGEST_RATIO", 2)
    path.write_bytes(gzip.compress(bytes(1_000_000)))
    with pytest.raises(DataError, match="unpacks to more than"):
        rows_of(path)
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.name.endswith(".partial")]


def test_the_index_is_made_once_and_again_when_the_tar_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def counting(stream: Any, size: int, name: str) -> Any:
        made.append(name)
        return build_index(stream, size, name)

    monkeypatch.setattr(index_files, "build_index", counting)
    tar = write_chart_tar(tmp_path / "a.tar", range(3))
    assert len(rows_of(tar)) == len(rows_of(tar)) == 3
    assert made == [str(tar)]
    assert (tmp_path / "a.tar.index.json").is_file()
    assert not (tmp_path / "cache" / "tars").exists() or not list((tmp_path / "cache" / "tars").iterdir())
    rows = rows_of(tar)
    write_chart_tar(tar, range(10, 15))
    os.utime(tar, ns=(10**18, 10**18))
    with pytest.raises(DataError, match="was changed while it was in use"):
        rows[0]
    assert len(rows_of(tar)) == 5
    assert len(made) == 2
    for nonsense in ("", "{}", "[]", '{"version": 1, "keys": [3]}', "[" * 100_000):
        (tmp_path / "a.tar.index.json").write_text(nonsense)
        assert len(rows_of(tar)) == 5
    assert len(made) == 7


def test_an_index_whose_places_do_not_fit_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tar = write_chart_tar(tmp_path / "a.tar", range(3))
    expected = rows_of(tar)[2]
    kept = tmp_path / "a.tar.index.json"
    good = json.loads(kept.read_text())
    good.pop("checksum")
    changes = {
        "offsets": [10**9] * 6,
        "sizes": [10**12] * 6,
        "starts": [0, 4, 2, 6],
        "kinds": [7] * 6,
        "keys": ["a"],
        "columns": [1],
        "crc32": [1],
    }
    for name, value in changes.items():
        caplog.clear()
        kept.write_bytes(index_files.sealed({**good, name: value}))
        assert rows_of(tar)[2] == expected
        assert "is no valid index" in caplog.text


def test_a_folder_that_cannot_be_written_has_its_index_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = write_chart_tar(tmp_path / "a.tar", range(3))
    write = index_files.write_index

    def refuse(file: Path, kept: Any) -> None:
        if file.parent == tmp_path:
            raise PermissionError(13, "Permission denied")
        write(file, kept)

    monkeypatch.setattr(index_files, "write_index", refuse)
    assert len(rows_of(tar)) == 3
    assert not (tmp_path / "a.tar.index.json").exists()
    assert len(list((tmp_path / "cache" / "tars").glob("*.index.json"))) == 1
    monkeypatch.setattr(index_files, "build_index", None)  # not called again
    assert len(rows_of(tar)) == 3


def test_splits_by_file_name_and_index_files_are_no_data(tmp_path: Path) -> None:
    for name, numbers in (
        ("train-0.tar", [0, 1]),
        ("train-1.tar.gz", [2]),
        ("eval-000000.tar", [3]),
        ("test.tgz", [4]),
    ):
        tar = write_chart_tar(tmp_path / "made.tar", numbers)
        packs = name.endswith("gz")
        (tmp_path / "s").mkdir(exist_ok=True)
        (tmp_path / "s" / name).write_bytes(gzip.compress(tar.read_bytes()) if packs else tar.read_bytes())
    (tmp_path / "s" / "index.json").write_text('{"shards": []}')
    for _ in range(2):
        splits = open_source(str(tmp_path / "s")).splits
        assert {name: len(rows) for name, rows in splits.items()} == {"eval": 1, "test": 1, "train": 3}
        assert {name: len(rows) for name, rows in open_source(f"{tmp_path}/s/*").splits.items()} == {
            name: len(rows) for name, rows in splits.items()
        }


def test_a_tar_that_index_json_lists_and_is_missing_is_an_error(tmp_path: Path) -> None:
    for name in ("train-0.tar", "train-1.tar"):
        write_chart_tar(tmp_path / name, [1])
    listed = {"shards": [{"name": name} for name in ("train-0.tar", "train-1.tar", "train-2.tar", "eval-0.tar")]}
    (tmp_path / "index.json").write_text(json.dumps(listed))
    with pytest.raises(DataError, match=r"2 tars are missing .*train-2\.tar, eval-0\.tar"):
        open_source(str(tmp_path))
    with pytest.raises(DataError, match=r"1 tar is missing .*train-2\.tar"):
        open_source(f"{tmp_path}/train-*.tar")
    assert len(rows_of(tmp_path / "train-0.tar")) == 1
    (tmp_path / "index.json").write_text(json.dumps({"shards": listed["shards"][:2]}))
    assert len(rows_of(tmp_path)) == 2
