"""The image loader: hand-computed pixels for each kind of file, and everything it must refuse."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile
from skimage import data as pictures

from support.datasets import draw_chart, encode_png
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.images.loader import ImageLimits, load_image
from vlm_lora.errors import ImageError

LIMITS = ImageLimits()
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def pixels(encoded: bytes | Image.Image | Path, limits: ImageLimits = LIMITS) -> NDArray[np.uint8]:
    loaded = load_image(encoded, limits=limits)
    assert loaded.mode == "RGB"
    assert loaded.info == {}
    return np.asarray(loaded)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_give_back_every_pixel(kind: str) -> None:
    astronaut = Image.fromarray(pictures.astronaut()[:40, :50])
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(pixels(encode(astronaut, kind, **options)), pictures.astronaut()[:40, :50])


def test_a_path_bytes_and_an_image_load_the_same(tmp_path: Path) -> None:
    picture, _, _ = draw_chart(5)
    file = tmp_path / "chart.png"
    file.write_bytes(encode_png(picture))
    expected = np.asarray(picture)
    for source in (file, file.read_bytes(), picture):
        assert np.array_equal(pixels(source), expected)
    assert not np.array_equal(pixels(encode_png(draw_chart(6)[0])), expected)


# A 3x2 image whose six pixels all differ, as stored; and how each EXIF orientation shows it.
STORED = [[10, 20, 30], [40, 50, 60]]
UPRIGHT = {
    1: [[10, 20, 30], [40, 50, 60]],
    2: [[30, 20, 10], [60, 50, 40]],
    3: [[60, 50, 40], [30, 20, 10]],
    4: [[40, 50, 60], [10, 20, 30]],
    5: [[10, 40], [20, 50], [30, 60]],
    6: [[40, 10], [50, 20], [60, 30]],
    7: [[60, 30], [50, 20], [40, 10]],
    8: [[30, 60], [20, 50], [10, 40]],
}


@pytest.mark.parametrize("orientation", list(UPRIGHT))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    picture = Image.fromarray(np.array(STORED, dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = load_image(encode(picture, kind, exif=exif), limits=LIMITS)
    assert np.asarray(loaded)[..., 0].tolist() == UPRIGHT[orientation]
    again = load_image(loaded, limits=LIMITS)
    assert np.asarray(again)[..., 0].tolist() == UPRIGHT[orientation]


def test_exif_of_a_jpeg_is_applied() -> None:
    picture = Image.new("RGB", (64, 32), "white")
    picture.paste((0, 0, 0), (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = pixels(encode(picture, "JPEG", exif=exif, quality=95))
    assert turned.shape == (64, 32, 3)
    assert turned[:30].max() < 20
    assert turned[34:].min() > 235


def test_a_broken_exif_block_leaves_the_image_as_stored() -> None:
    encoded = encode(Image.new("RGB", (8, 4), RED), "JPEG", exif=b"Exif\x00\x00MM\x00*broken!")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(encoded).shape == (4, 8, 3)


def test_16_bit_gray_is_scaled_not_clipped() -> None:
    samples = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    # round(v * 255 / 65535), by hand; clipping would give 255 from the third value on.
    expected = [0, 0, 1, 1, 128, 255]
    for kind in ("PNG", "TIFF", "PPM"):
        assert pixels(encode(Image.fromarray(samples), kind))[0, :, 0].tolist() == expected, kind
    assert pixels(Image.fromarray(samples))[0, :, 2].tolist() == expected


def test_16_bit_tiff_where_white_is_zero_is_inverted() -> None:
    samples = np.array([[0, 65535, 257]], dtype=np.uint16)
    encoded = bytearray(encode(Image.fromarray(samples), "TIFF"))
    entry = encoded.index(struct.pack("<HHI", 262, 3, 1))
    encoded[entry + 8 : entry + 10] = struct.pack("<H", 0)
    assert pixels(bytes(encoded))[0, :, 0].tolist() == [255, 0, 254]


def test_16_bit_colour_is_scaled() -> None:
    body = b"P6 2 1 65535\n" + struct.pack(">6H", 0, 65535, 257, 32896, 514, 65278)
    assert pixels(body)[0].tolist() == [[0, 255, 1], [128, 2, 254]]


def test_transparent_gray_of_a_16_bit_png_becomes_white() -> None:
    picture = Image.fromarray(np.array([[0, 4660, 65535]], dtype=np.uint16))
    assert pixels(encode(picture, "PNG", transparency=4660))[0, :, 0].tolist() == [0, 255, 255]


def test_cmyk_is_converted() -> None:
    picture = Image.new("CMYK", (5, 1))
    for x, value in enumerate([(0, 0, 0, 0), (0, 0, 0, 255), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0)]):
        picture.putpixel((x, 0), value)
    expected = [[255, 255, 255], [0, 0, 0], [0, 255, 255], [255, 0, 255], [255, 255, 0]]
    assert pixels(encode(picture, "TIFF"))[0].tolist() == expected
    solid = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(pixels(encode(solid, "JPEG", quality=100)).astype(int) - RED).max() <= 3


def test_alpha_is_put_on_white() -> None:
    picture = Image.new("RGBA", (3, 1))
    for x, value in enumerate([(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 255, 51)]):
        picture.putpixel((x, 0), value)
    # The last: 20% blue on white = (204, 204, 255). Dropping alpha would give (0, 0, 255).
    for kind in ("PNG", "TIFF"):
        assert pixels(encode(picture, kind))[0].tolist() == [[255, 0, 0], [255, 255, 255], [204, 204, 255]]


def test_gray_with_alpha_is_put_on_white() -> None:
    picture = Image.new("LA", (2, 1), (0, 0))
    picture.putpixel((1, 0), (100, 255))
    assert pixels(encode(picture, "PNG"))[0].tolist() == [[255] * 3, [100] * 3]


def test_palette_transparency_is_put_on_white() -> None:
    picture = Image.new("P", (3, 1))
    picture.putpalette([*RED, *GREEN, *BLUE])
    for x in range(3):
        picture.putpixel((x, 0), x)
    assert pixels(encode(picture, "PNG"))[0].tolist() == [list(RED), list(GREEN), list(BLUE)]
    clear = encode(picture, "PNG", transparency=b"\xff\x00\xff")
    assert pixels(clear)[0].tolist() == [list(RED), list(WHITE), list(BLUE)]
    assert pixels(encode(picture, "GIF", transparency=2))[0].tolist() == [list(RED), list(GREEN), list(WHITE)]


def test_colour_key_transparency_is_put_on_white() -> None:
    picture = Image.new("RGB", (2, 1), GREEN)
    picture.putpixel((0, 0), RED)
    assert pixels(encode(picture, "PNG", transparency=RED))[0].tolist() == [list(WHITE), list(GREEN)]


def test_one_bit_images_are_black_and_white() -> None:
    picture = Image.new("1", (2, 1), 0)
    picture.putpixel((1, 0), 1)
    assert pixels(encode(picture, "PNG"))[0].tolist() == [[0] * 3, [255] * 3]


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_the_first_frame_of_an_animation_counts(kind: str, options: dict[str, Any]) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    animated = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(pixels(animated), np.asarray(frames[0]))


@pytest.mark.parametrize(
    "picture",
    [
        Image.fromarray(np.ones((2, 2), dtype=np.float32)),
        Image.fromarray(np.full((2, 2), 70000, dtype=np.int32)),
    ],
    ids=["float", "int32"],
)
def test_samples_without_a_brightness_range_are_refused(picture: Image.Image) -> None:
    for source in (picture, encode(picture, "TIFF")):
        with pytest.raises(ImageError, match=r"no agreed brightness range.*8 or 16 bits"):
            load_image(source, limits=LIMITS)


def refuse_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: ImageFile.ImageFile) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


def test_bombs_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_decoding(monkeypatch)
    with pytest.raises(ImageError, match=r"64008000 pixels.*64000000 allowed.*--max_image_pixels"):
        load_image(png_header(8000, 8001), limits=LIMITS)
    with pytest.raises(ImageError, match=r"pixels"):
        load_image(png_header(100_000, 100_000), limits=LIMITS)
    # The control: an allowed size does reach the decoder.
    with pytest.raises(ImageError, match="decoded"):
        load_image(encode_png(Image.new("RGB", (4, 4))), limits=LIMITS)


def test_pixel_and_byte_limits_are_exact(tmp_path: Path) -> None:
    encoded = encode_png(Image.new("RGB", (10, 10)))
    assert pixels(encoded, ImageLimits(max_pixels=100, max_bytes=len(encoded))).shape == (10, 10, 3)
    with pytest.raises(ImageError, match="--max_image_pixels"):
        load_image(encoded, limits=ImageLimits(max_pixels=99))
    file = tmp_path / "a.png"
    file.write_bytes(encoded)
    for source in (encoded, file):
        with pytest.raises(ImageError, match="--max_image_bytes"):
            load_image(source, limits=ImageLimits(max_bytes=len(encoded) - 1))
    with pytest.raises(ImageError, match="--max_image_pixels"):
        load_image(Image.new("RGB", (10, 10)), limits=ImageLimits(max_pixels=99))


def test_limits_come_from_the_configuration() -> None:
    limits = ImageLimits.of(DataConfig(max_image_pixels=7, max_image_bytes=9))
    assert (limits.max_pixels, limits.max_bytes, limits.max_aspect_ratio) == (7, 9, 200.0)


def test_aspect_ratio_is_limited() -> None:
    assert pixels(encode_png(Image.new("RGB", (200, 1)))).shape == (1, 200, 3)
    for size in ((201, 1), (1, 201)):
        with pytest.raises(ImageError, match="Crop it"):
            load_image(encode_png(Image.new("RGB", size)), limits=LIMITS)


@pytest.mark.parametrize(
    ("encoded", "said"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "EPS"),
        (b"%PDF-1.7\n", "PDF"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"<!DOCTYPE html><html>not found</html>", "web page"),
        (b"\x00\x00\x00\x18ftypheic", "HEIC"),
        (b"no picture at all", "none of them"),
        (b"\x89PNG\r\n\x1a\n", "broken"),
    ],
)
def test_other_formats_are_refused_by_name(encoded: bytes, said: str) -> None:
    with pytest.raises(ImageError, match=rf"{said}.*Convert it to PNG or JPEG"):
        load_image(encoded, limits=LIMITS)


def test_a_format_that_pillow_reads_and_we_do_not_is_refused() -> None:
    encoded = encode(Image.new("RGB", (4, 4)), "TGA")
    Image.open(io.BytesIO(encoded)).load()
    with pytest.raises(ImageError, match="formats are JPEG, PNG"):
        load_image(encoded, limits=LIMITS)


def test_empty_bytes_are_an_error() -> None:
    with pytest.raises(ImageError, match="empty"):
        load_image(b"", limits=LIMITS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_truncated_files_are_errors(kind: str) -> None:
    encoded = encode(Image.fromarray(pictures.astronaut()[:64, :64]), kind)
    with pytest.raises(ImageError):
        load_image(encoded[: len(encoded) // 2], limits=LIMITS)


def test_truncated_files_stay_errors_where_other_code_allows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ImageError, match="LOAD_TRUNCATED_IMAGES"):
        load_image(encode_png(Image.new("RGB", (4, 4))), limits=LIMITS)


def test_missing_and_irregular_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png.*No such file"):
        load_image(tmp_path / "gone.png", limits=LIMITS)
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe):
        with pytest.raises(ImageError, match="not a regular file"):
            load_image(path, limits=LIMITS)


SEEDS = [
    encode(Image.fromarray(pictures.astronaut()[:9, :11]), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF")
]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SEEDS), st.data())
def test_damaged_files_load_or_raise_image_errors(encoded: bytes, draw: st.DataObject) -> None:
    damaged = bytearray(encoded)
    for _ in range(draw.draw(st.integers(1, 6))):
        damaged[draw.draw(st.integers(0, len(damaged) - 1))] = draw.draw(st.integers(0, 255))
    try:
        assert load_image(bytes(damaged), limits=LIMITS).mode == "RGB"
    except ImageError:
        return
