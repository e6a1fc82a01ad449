"""What rows hold for images: every accepted form, and where paths may not lead."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support.datasets import draw_chart, encode_png, write_image
from support.read_back import read_back
from vlm_lora.data.conversation import ImageRef, Url
from vlm_lora.data.images.values import (
    ImagePlace,
    is_missing,
    looks_like_image,
    read_image_value,
    read_image_values,
)
from vlm_lora.errors import ImageError

PNG = encode_png(draw_chart(3)[0])
TEXT = base64.b64encode(PNG).decode()


@pytest.fixture
def place(tmp_path: Path) -> ImagePlace:
    write_image(tmp_path / "root" / "pictures" / "a.png", seed=1)
    write_image(tmp_path / "outside.png", seed=2)
    return ImagePlace(folder=tmp_path / "root")


def real(place: ImagePlace) -> Path:
    assert place.folder is not None
    return (place.folder / "pictures" / "a.png").resolve()


def test_every_form_of_a_path_gives_the_same_file(place: ImagePlace) -> None:
    expected = ImageRef(source=real(place))
    forms: list[Any] = [
        "pictures/a.png",
        "./pictures/../pictures/a.png",
        Path("pictures/a.png"),
        str(real(place)),
        f"file://{real(place)}",
        {"bytes": None, "path": "pictures/a.png"},
        {"path": "pictures/a.png"},
    ]
    for form in forms:
        assert read_image_value(form, place) == expected, form


def test_every_form_of_encoded_bytes_gives_the_bytes(place: ImagePlace) -> None:
    wrapped = "\n".join(TEXT[i : i + 76] for i in range(0, len(TEXT), 76))
    forms: list[Any] = [
        PNG,
        bytearray(PNG),
        {"bytes": PNG, "path": "gone.png"},
        {"bytes": PNG, "path": None},
        TEXT,
        wrapped,
        f"data:image/png;base64,{TEXT}",
        f"data:image/png;charset=utf-8;base64,{TEXT}",
        f"data:;base64,{TEXT}",
    ]
    for form in forms:
        assert read_image_value(form, place) == ImageRef(source=PNG), str(form)[:40]


def test_an_image_stays_itself(place: ImagePlace) -> None:
    picture = Image.new("RGB", (2, 2))
    assert read_image_value(picture, place).source is picture


@pytest.mark.parametrize("value", [None, "", [], (), {"bytes": None, "path": None}])
def test_missing_images_are_no_images(value: Any, place: ImagePlace) -> None:
    assert is_missing(value)
    assert read_image_values(value, place) == ()


def test_lists_keep_their_order(place: ImagePlace) -> None:
    refs = read_image_values(["pictures/a.png", PNG, {"bytes": b"x", "path": None}], place)
    assert [ref.source for ref in refs] == [real(place), PNG, b"x"]


def test_lost_images_are_not_taken_for_absent_ones(place: ImagePlace) -> None:
    assert [ref.source for ref in read_image_values({"bytes": b"", "path": None}, place)] == [b""]
    with pytest.raises(ImageError, match="Image 2 of 2 in the list is empty"):
        read_image_values(["pictures/a.png", None], place)


@pytest.mark.parametrize("escape", ["../outside.png", "pictures/../../outside.png", "{outside}", "file://{outside}"])
def test_paths_outside_the_root_are_refused(escape: str, place: ImagePlace) -> None:
    assert place.folder is not None
    path = escape.format(outside=place.folder.parent / "outside.png")
    with pytest.raises(ImageError, match=r"outside.*Type --image_root"):
        read_image_value(path, place)
    wider = ImagePlace(folder=place.folder, roots=(place.folder.parent,))
    assert read_image_value(path, wider).source == place.folder.parent.resolve() / "outside.png"


def test_symlinks_out_of_the_root_are_refused_and_inside_it_followed(place: ImagePlace) -> None:
    assert place.folder is not None
    (place.folder / "in.png").symlink_to("pictures/a.png")
    (place.folder / "out.png").symlink_to(place.folder.parent / "outside.png")
    (place.folder / "up").symlink_to(place.folder.parent)
    assert read_image_value("in.png", place).source == real(place)
    for path in ("out.png", "up/outside.png"):
        with pytest.raises(ImageError, match="--image_root"):
            read_image_value(path, place)


def test_a_root_with_a_common_prefix_is_another_folder(place: ImagePlace) -> None:
    assert place.folder is not None
    write_image(place.folder.parent / "root2" / "b.png", seed=1)
    with pytest.raises(ImageError, match="outside"):
        read_image_value("../root2/b.png", place)


def test_outside_the_root_nothing_is_told_about_what_is_there(place: ImagePlace) -> None:
    messages = []
    for path in ("../outside.png", "../gone1234.png"):
        with pytest.raises(ImageError) as caught:
            read_image_value(path, place)
        messages.append(str(caught.value).replace("gone1234", "outside"))
    assert messages[0] == messages[1]


def test_irregular_and_missing_files_are_refused(place: ImagePlace) -> None:
    assert place.folder is not None
    os.mkfifo(place.folder / "pipe.png")
    (place.folder / "loop.png").symlink_to("loop.png")
    for path in ("pipe.png", "pictures"):
        with pytest.raises(ImageError, match="not a regular file"):
            read_image_value(path, place)
    for path in ("gone.png", "loop.png", "x" * 5000):
        with pytest.raises(ImageError, match="cannot be opened"):
            read_image_value(path, place)
    with pytest.raises(ImageError, match="NUL"):
        read_image_value("a\x00.png", place)


@pytest.mark.parametrize("url", ["http://x.org/a.png", "https://x.org/a.png", "HTTPS://x.org/a.png"])
def test_urls_are_refused_unless_allowed(url: str, place: ImagePlace) -> None:
    for value in (url, {"bytes": None, "path": url}):
        with pytest.raises(ImageError, match=r"URLs are not fetched unless you allow it.*--allow_urls true"):
            read_image_value(value, place)
        assert read_image_value(value, replace(place, allow_urls=True)) == ImageRef(source=Url(text=url))


@pytest.mark.parametrize("url", ["S3://bucket/a.png", "ftp://x/a.png", "gopher://x/_a", "httpx://x.org/a.png"])
def test_other_urls_are_never_fetched(url: str, place: ImagePlace) -> None:
    for allowed in (False, True):
        with pytest.raises(ImageError, match="only http and https are"):
            read_image_value(url, replace(place, allow_urls=allowed))


def test_a_file_url_names_no_other_machine(place: ImagePlace) -> None:
    assert read_image_value(f"file://localhost{real(place)}", place) == ImageRef(source=real(place))
    with pytest.raises(ImageError, match="lies on another machine"):
        read_image_value(f"file://pictures{real(place)}", place)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("data:image/png;base64,@@@@", "base64"),
        ("data:image/png,abc", "not base64"),
        ("data:text/html;base64,aGk=", "text/html"),
        ("data:image/png;base64,", "empty"),
        (TEXT[:-3], "broken"),
        ([0, 255], "list of numbers"),
        (7, "of type int"),
        ({"href": "x"}, "`bytes`, `path`, `url` or `src`"),
    ],
)
def test_what_cannot_be_read_is_refused(value: Any, said: str, place: ImagePlace) -> None:
    with pytest.raises(ImageError, match=said):
        read_image_value(value, place)


def test_a_hub_row_with_a_relative_path_asks_for_a_root() -> None:
    with pytest.raises(ImageError, match="--image_root"):
        read_image_value("a.png", ImagePlace(folder=None))


def test_values_that_are_surely_images() -> None:
    for value in (
        PNG,
        TEXT,
        "x/a.JPG",
        {"bytes": PNG, "path": None},
        ["a.png"],
        f"data:image/png;base64,{TEXT}",
    ):
        assert looks_like_image(value), str(value)[:40]
    for other in (
        "What is in an image?",
        b"text",
        3,
        None,
        [],
        ["a.png", "a"],
        {"bytes": None, "path": None},
        "a.txt",
    ):
        assert not looks_like_image(other), str(other)[:40]


@pytest.mark.parametrize("text", ["\ud800.png", "pictures/\udfff/a.png", "file:///\ud83d.png", "C:\\\ud800.png"])
@pytest.mark.parametrize("other", [True, False])
def test_a_path_that_no_file_can_have_is_refused(text: str, other: bool, place: ImagePlace) -> None:
    for value in (text, {"path": text}, [text]):
        with pytest.raises(ImageError, match=r"holds half of a surrogate pair at character \d"):
            read_image_values(value, replace(place, data_folder=place.folder if other else None))


def test_a_url_of_no_text_is_refused(place: ImagePlace) -> None:
    with pytest.raises(ImageError, match=r"URL \('https://x.org/\\ud800.png'\) holds half of a surrogate pair"):
        read_image_value("https://x.org/\ud800.png", replace(place, allow_urls=True))


def test_names_that_are_no_utf8_are_read_as_folders_list_them(place: ImagePlace) -> None:
    """The control: such names hold halves of pairs, too."""
    assert place.folder is not None
    real(place).rename(os.fsdecode(os.fsencode(place.folder) + b"/\xe9.png"))
    assert read_image_value("\udce9.png", place).source == place.folder / "\udce9.png"


def test_a_row_with_such_a_path_is_a_bad_row(tmp_path: Path) -> None:
    rows = [{"image": name, "question": "q", "answer": "a"} for name in ("0.png", "\ud800.png", ["\ud800"])]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    fine, *bad = read_back(path, tmp_path).told
    assert fine == [["<0.png>", "q"], ["a"]]
    assert all("half of a surrogate pair" in said for said in bad)
