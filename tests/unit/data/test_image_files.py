"""Image files as people have them: HEIC and AVIF, odd spellings of paths, lists written as text, and ids."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.conversation import ImageRef
from vlm_lora.data.dataset import ConversationDataset, load_splits
from vlm_lora.data.formats.tar.samples import kind_of
from vlm_lora.data.formats.tar.sampling import MemberChoice, samples_of
from vlm_lora.data.images import formats, numbers
from vlm_lora.data.images.loader import ImageLimits, load_image, read_size
from vlm_lora.data.images.values import ImagePlace, looks_like_image, read_image_values
from vlm_lora.data.sources.named import open_source
from vlm_lora.errors import DataError, ImageError

TURNED = 6
"""EXIF: shown a quarter turn clockwise."""


@pytest.fixture(autouse=True)
def _decoders_looked_for_anew() -> Iterator[None]:
    formats._has_decoder.cache_clear()
    numbers._index.cache_clear()
    yield
    formats._has_decoder.cache_clear()


def encode(kind: str, *, orientation: int = 0) -> bytes:
    """Return an image of 40x20 whose left half is red and whose right half is blue."""
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, :20, 0] = pixels[:, 20:, 2] = 255
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, quality=100, exif=exif.tobytes())
    return stream.getvalue()


def close(pixel: Any, colour: tuple[int, int, int]) -> bool:
    return max(abs(int(one) - two) for one, two in zip(pixel, colour, strict=True)) < 40


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_heic_and_avif_are_loaded_upright(kind: str, tmp_path: Path) -> None:
    encoded = encode(kind)
    loaded = load_image(encoded, limits=ImageLimits())
    assert (loaded.mode, loaded.size) == ("RGB", (40, 20))
    assert close(loaded.getpixel((5, 10)), (255, 0, 0))
    assert close(loaded.getpixel((35, 10)), (0, 0, 255))
    turned = encode(kind, orientation=TURNED)
    file = tmp_path / "a.bin"
    file.write_bytes(turned)
    upright = load_image(file, limits=ImageLimits())
    assert upright.size == (20, 40) == read_size(turned) == read_size(file)
    assert close(upright.getpixel((10, 5)), (255, 0, 0)), "the left half comes to the top"
    assert close(upright.getpixel((10, 35)), (0, 0, 255))
    assert looks_like_image(encoded)
    assert looks_like_image(base64.b64encode(encoded).decode())


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_limits_hold_and_broken_files_are_named(kind: str) -> None:
    encoded = encode(kind)
    with pytest.raises(ImageError, match="40x20 is 800 pixels, more than the 799 allowed"):
        load_image(encoded, limits=ImageLimits(max_pixels=799))
    with pytest.raises(ImageError, match=r"of \d+ bytes in the row"):
        load_image(encoded[: len(encoded) // 2], limits=ImageLimits())


@pytest.mark.parametrize(("kind", "called"), [("HEIF", "HEIC"), ("AVIF", "AVIF")])
def test_without_the_decoder_the_message_says_what_to_install(
    kind: str, called: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = encode(kind)
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(ImageError) as refused:
        load_image(encoded, limits=ImageLimits())
    assert f"this is {called}, and its decoder is not installed" in str(refused.value)
    assert 'pip install "vlm-lora[images]"' in str(refused.value)


def test_older_pillow_reads_avif_by_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = encode("AVIF")
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    assert load_image(encoded, limits=ImageLimits()).size == (40, 20)
    assert Image.OPEN["AVIF"][0].__module__.startswith("pillow_avif")


def test_dicom_and_videos_are_named() -> None:
    dicom = bytes(128) + b"DICM" + bytes(64)
    with pytest.raises(ImageError, match=r"this is DICOM.*pydicom"):
        load_image(dicom, limits=ImageLimits())
    with pytest.raises(ImageError, match="this is a video"):
        load_image(b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isommp42" + bytes(64), limits=ImageLimits())


def test_names_of_such_files_are_known_wherever_names_decide() -> None:
    for ending in ("heic", "HEIF", "avif", "dcm"):
        assert looks_like_image(f"scans/a.{ending}")
        assert kind_of(ending.lower()) == "picture"
    assert not looks_like_image("scans/a.txt"), "the control"
    assert kind_of("mp4") == "other"


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path)
    return path


def source(value: Any, folder: Path, **place: Any) -> list[Any]:
    return [image.source for image in read_image_values(value, ImagePlace(folder=folder, **place))]


def test_windows_separators_lead_to_the_file(tmp_path: Path) -> None:
    there = save(tmp_path / "images" / "a.png")
    assert source("images\\a.png", tmp_path) == [there.resolve()]
    own = save(tmp_path / "b\\c.png")
    save(tmp_path / "b" / "c.png")
    assert source("b\\c.png", tmp_path) == [own.resolve()], "a file of that very name comes first"
    with pytest.raises(ImageError, match="outside"):
        source("..\\a.png", tmp_path / "images")
    with pytest.raises(ImageError, match="starts at a drive of Windows"):
        source("C:\\data\\a.png", tmp_path)


@pytest.mark.parametrize(
    ("typed", "there"),
    [
        ("a.png", "A.PNG"),
        ("images/photo one.jpg", "Images/Photo One.JPG"),
        ("photo%20one.png", "photo one.png"),
        ("photo one.png", "photo%20one.png"),
        (" a.png ", "a.png"),
        ("a.png", "a.png "),
        ("caf\u00e9.png", "cafe\u0301.png"),
        ("images\\b.png", "images/B.png"),
    ],
)
def test_another_spelling_is_named_and_never_taken(typed: str, there: str, tmp_path: Path) -> None:
    path = tmp_path / there
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    with pytest.raises(ImageError) as refused:
        source(typed, tmp_path)
    assert str(refused.value).endswith(f"Did you mean '{there}'?")


def test_nothing_is_suggested_that_is_not_there_twice_there_or_outside(tmp_path: Path) -> None:
    for name in ("inside/c.png", "inside/B.png", "inside/b.PNG", "A.PNG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for typed in ("d.png", "b.png", "../a.png", str(tmp_path / "a.png")):
        with pytest.raises(ImageError) as refused:
            source(typed, tmp_path / "inside")
        assert "Did you mean" not in str(refused.value)
    root = tmp_path / "inside"
    with pytest.raises(ImageError, match=r"Did you mean 'c\.png'"):
        source("C.png", tmp_path / "elsewhere", roots=(root,), data_folder=root)


@pytest.mark.parametrize(
    "text",
    ['["a.png", "b.png"]', "['a.png', 'b.png']", "['a.png' 'b.png']", '[{"path": "a.png"}, {"path": "b.png"}]'],
)
def test_lists_written_as_text_are_lists(text: str, tmp_path: Path) -> None:
    files = [save(tmp_path / name).resolve() for name in ("a.png", "b.png")]
    assert source(text, tmp_path) == files
    assert looks_like_image(text) is ("path" not in text)
    assert source("[]", tmp_path) == []
    assert not looks_like_image("[]")
    assert not looks_like_image('["yes", "no"]'), "the control"
    named = save(tmp_path / "[1].png").resolve()
    assert source("[1].png", tmp_path) == [named], "a name that begins so"


def rows_of(file: Path, **settings: Any) -> ConversationDataset:
    config = DataConfig(dataset_name=str(file), validation_fraction=0.0, **settings)
    data = load_splits(config, need_train=True, need_validation=False).train
    assert isinstance(data, ConversationDataset)
    return data


def files_of(data: ConversationDataset) -> list[list[str]]:
    return [[Path(str(image.source)).name for image in data[at].images] for at in range(len(data))]


def test_lists_in_the_cells_of_a_table(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save(tmp_path / name)
    file = tmp_path / "train.csv"
    file.write_text("shown,question,answer\n\"['a.png', 'b.png']\",Which?,first\n\"['b.png']\",What?,b\n")
    assert files_of(rows_of(file)) == [["a.png", "b.png"], ["b.png"]]


COCO = ("train2014/COCO_train2014_000000000139.jpg", "val2017/000000000285.jpg", "abc.png", "notes.txt")


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ((139, 285), ["COCO_train2014_000000000139.jpg", "000000000285.jpg"]),
        (("139", "000000000285"), ["COCO_train2014_000000000139.jpg", "000000000285.jpg"]),
        (("abc", "COCO_train2014_000000000139"), ["abc.png", "COCO_train2014_000000000139.jpg"]),
        (("abc.png", 285.0), ["abc.png", "000000000285.jpg"]),
        (("139.0", [285]), ["COCO_train2014_000000000139.jpg", "000000000285.jpg"]),
        (("[139]", "['285']"), ["COCO_train2014_000000000139.jpg", "000000000285.jpg"]),
    ],
)
def test_ids_name_files_below_the_image_root(ids: tuple[Any, ...], expected: list[str], tmp_path: Path) -> None:
    for name in COCO:
        (tmp_path / "images" / "abc.txt").write_text("") if name == "notes.txt" else save(tmp_path / "images" / name)
    lines = [json.dumps({"image_id": one, "question": "What?", "answer": "x"}) for one in ids]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    data = rows_of(tmp_path / "train.jsonl", image_root=str(tmp_path / "images"))
    assert files_of(data) == [[name] for name in expected]
    assert any("whose ids are names of image files below --image_root" in line for line in data.schema.reasons)
    named = rows_of(tmp_path / "train.jsonl", image_root=str(tmp_path / "images"), image_column="image_id")
    assert files_of(named) == [[name] for name in expected]
    assert files_of(rows_of(tmp_path / "train.jsonl")) == [[], []], "the control: no --image_root"


@pytest.mark.parametrize("name", ["image_id", "image_ids", "img_ids"])
@pytest.mark.parametrize(
    "ids", [[139, 285], "[139, 285]", "[139 285]", "['139' '285']", [139.0, "285.0"], ["139", 285]]
)
def test_several_ids_are_several_images(name: str, ids: Any, tmp_path: Path) -> None:
    for number in ("139", "000285", "7"):
        save(tmp_path / "images" / f"{number}.png")
    row = {"question": "What?", "answer": "x"}
    rows = [{name: ids, **row}, {name: 7, **row}, {name: [7, 8], **row}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = rows_of(tmp_path / "train.jsonl", image_root=str(tmp_path / "images"))
    assert [Path(str(image.source)).name for image in data[0].images] == ["139.png", "000285.png"]
    assert len(data[1].images) == 1
    with pytest.raises(DataError, match=r"row 2 \(line 3\): The image 8 names no file below"):
        data[2]


@pytest.mark.parametrize("ids", [(139, 285), ([139], [285]), ("[1]", "2"), (7, 8, 139)])
def test_ids_whose_files_are_mostly_not_there_are_an_error(ids: tuple[Any, ...], tmp_path: Path) -> None:
    save(tmp_path / "images" / "139.png")
    rows = [{"image_id": one, "question": "What?", "answer": "x"} for one in ids]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    root = str(tmp_path / "images")
    with pytest.raises(DataError, match=r"'image_id' \d of \d name no image file below --image_root .*such as .*Type"):
        rows_of(tmp_path / "train.jsonl", image_root=root)
    text = rows_of(tmp_path / "train.jsonl", image_root=root, image_column="no_pictures")
    assert [conversation.images for conversation in (text[0], text[1])] == [(), ()]
    assert files_of(rows_of(tmp_path / "train.jsonl"))[0] == [], "the control: no --image_root"


def test_ids_are_not_looked_at_next_to_images(tmp_path: Path) -> None:
    for name in ("a.png", "139.png"):
        save(tmp_path / "images" / name)
    row = {"image": "a.png", "image_id": 139, "question": "What?", "answer": "x"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    assert files_of(rows_of(tmp_path / "train.jsonl", image_root=str(tmp_path / "images"))) == [["a.png"]]
    parts = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": "x"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": chat, "image_id": 139}))
    assert files_of(rows_of(tmp_path / "chat.jsonl", image_root=str(tmp_path / "images"))) == [["a.png"]]


def test_ids_of_no_file_and_of_several_are_bad_rows(tmp_path: Path) -> None:
    for name in ("a/000000000139.jpg", "b/COCO_139.jpg", "285.jpg", "286.jpg", "287.jpg"):
        save(tmp_path / "images" / name)
    lines = [json.dumps({"image_id": one, "question": "?", "answer": "x"}) for one in (139, 7, 285, 286, 287, True)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    data = rows_of(tmp_path / "train.jsonl", image_root=str(tmp_path / "images"))
    with pytest.raises(
        DataError, match=r"row 0 \(line 1\): The image 139 could be any of 2 files below .*a/000000000139\.jpg, b/"
    ):
        data[0]
    with pytest.raises(DataError, match=r"row 1 \(line 2\): The image 7 names no file below"):
        data[1]
    with pytest.raises(DataError, match=r"row 5 \(line 6\): The image True names no file below"):
        data[5]
    assert isinstance(data[2].images[0], ImageRef)


def test_shards_keep_such_files_and_name_images_by_ids(tmp_path: Path) -> None:
    for name, content in (("139.heic", encode("HEIF")), ("COCO_000000000285.avif", encode("AVIF"))):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_bytes(content)
    lines = [json.dumps({"image_id": one, "question": "What?", "answer": "x"}) for one in (139, 285)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    source = open_source(str(tmp_path / "train.jsonl"))
    config = DataConfig(image_root=str(tmp_path / "images"))
    samples = samples_of(source.splits["train"], config, MemberChoice())
    assert [sorted(sample.payloads) for sample in (samples[0], samples[1])] == [["heic", "json"], ["avif", "json"]]
    assert json.loads(samples[0].payloads["json"])["image_id"] == 139


def test_shards_keep_every_image_of_a_list_that_is_text_and_refuse_a_size(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save(tmp_path / name)
    row = {"image": '["a.png", "b.png"]', "question": "What?", "answer": "x"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    samples = samples_of(open_source(str(tmp_path / "train.jsonl")).splits["train"], DataConfig(), MemberChoice())
    assert sorted(samples[0].payloads) == ["0.png", "1.png", "json"]
    sized = {**row, "image": {"path": "a.png", "max_pixels": 9}}
    (tmp_path / "sized.jsonl").write_text(json.dumps(sized))
    samples = samples_of(open_source(str(tmp_path / "sized.jsonl")).splits["train"], DataConfig(), MemberChoice())
    with pytest.raises(DataError, match="a size of its own for an image"):
        samples[0]
