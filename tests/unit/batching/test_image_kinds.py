"""Sixty and more kinds of image files: each is loaded as the pixels computed here by hand, or refused with a reason.

The references are numpy arithmetic on the samples that were written, never what the loader or Pillow returns.
Files that Pillow does not write (odd headers, bombs) are put together from bytes.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.dataset import load_splits
from vlm_lora.data.images.loader import ImageLimits, count_scans, load_image
from vlm_lora.errors import ImageError

Pixels = NDArray[Any]
H, W = 6, 10
RNG = np.random.default_rng(11)
RGB: Pixels = RNG.integers(0, 256, (H, W, 3), dtype=np.uint8)
ALPHA: Pixels = RNG.integers(0, 256, (H, W), dtype=np.uint8)
GRAY: Pixels = RNG.integers(0, 256, (H, W), dtype=np.uint8)
WIDE: Pixels = RNG.integers(0, 65536, (H, W), dtype=np.uint16)
BITS: Pixels = RNG.integers(0, 2, (H, W), dtype=np.uint8)
INDEX: Pixels = RNG.integers(0, 4, (H, W), dtype=np.uint8)
PALETTE: Pixels = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 99, 199]], dtype=np.uint8)
SMOOTH: Pixels = np.broadcast_to(np.array([200, 100, 50], dtype=np.uint8), (16, 24, 3)).copy()


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A file, and the pixels it shows (within a tolerance, for lossy formats) or the reason it is refused with."""

    encoded: bytes
    shows: Pixels | None = None
    within: int = 0
    refused: str = ""


def picture(samples: Pixels, mode: str | None = None) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(samples), mode)


def save(shown: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    shown.save(stream, kind, **options)
    return stream.getvalue()


def gray(samples: Pixels) -> Pixels:
    return np.repeat(samples[..., None], 3, axis=2)


def on_white(colour: Pixels, alpha: Pixels) -> Pixels:
    share = alpha.astype(float)[..., None] / 255
    return np.rint(colour * share + 255 * (1 - share))


def wide(samples: Pixels) -> Pixels:
    return gray(np.floor(samples.astype(float) * 255 / 65535 + 0.5))


def turned(samples: Pixels, orientation: int) -> Pixels:
    """Turn by the table in the EXIF standard: where row 0 and column 0 of the stored image are shown."""
    shown = {
        1: samples,
        2: samples[:, ::-1],
        3: samples[::-1, ::-1],
        4: samples[::-1],
        5: samples.swapaxes(0, 1),
        6: samples.swapaxes(0, 1)[:, ::-1],
        7: samples[::-1, ::-1].swapaxes(0, 1),
        8: samples.swapaxes(0, 1)[::-1],
    }
    return shown[orientation]


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *between: bytes) -> bytes:
    """A PNG from its parts; `rows` begin with their filter byte 0."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(between) + body + chunk(b"IEND", b"")


def png_rows(samples: Pixels) -> bytes:
    return b"".join(b"\x00" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in samples)


def tiff(entries: dict[int, tuple[int, int, int]], data: bytes = b"") -> bytes:
    """A little-endian TIFF of one directory: tag to (type, count, value or offset); `data` begins at byte 8."""
    directory = struct.pack("<H", len(entries))
    for tag, (kind, count, value) in sorted(entries.items()):
        directory += struct.pack("<HHI", tag, kind, count)
        directory += struct.pack("<HH", value, 0) if kind == 3 and count == 1 else struct.pack("<I", value)
    return b"II*\x00" + struct.pack("<I", 8 + len(data)) + data + directory + b"\x00\x00\x00\x00"


def plain_tiff(width: int, height: int, **changed: tuple[int, int, int]) -> dict[int, tuple[int, int, int]]:
    """The entries of a gray TIFF of one strip."""
    size = width * height
    entries = {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, 1, 8),
        259: (3, 1, 1),
        262: (3, 1, 1),
        273: (4, 1, 8),
        277: (3, 1, 1),
        278: (4, 1, height),
        279: (4, 1, size),
    }
    return {**entries, **{int(tag.strip("t")): entry for tag, entry in changed.items()}}


def bmp(width: int, height: int, bits: int, body: bytes, *, compression: int = 0, palette: bytes = b"") -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, len(palette) // 4, 0)
    offset = 14 + len(head) + len(palette)
    return struct.pack("<2sIHHI", b"BM", offset + len(body), 0, 0, offset) + head + palette + body


def palette_image(**info: Any) -> Image.Image:
    shown = Image.frombytes("P", (W, H), INDEX.tobytes())
    shown.putpalette(PALETTE.tobytes())
    shown.info.update(info)
    return shown


def gif(screen: tuple[int, int], frame: tuple[int, int, int, int], data: bytes = b"\x02\x02D\x01\x00") -> bytes:
    """A GIF of one frame at `frame` (left, top, width, height) of a screen; its data is one black pixel or so."""
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes([0, 0, 0, 255, 255, 255])
    return head + b"," + struct.pack("<HHHHB", *frame, 0) + data + b";"


def webp_header(width: int, height: int) -> bytes:
    """An extended WebP that claims a canvas and holds no image."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x00\x00\x00\x00" + size
    return b"RIFF" + struct.pack("<I", len(body)) + body


def many_scans(count: int) -> bytes:
    """A progressive JPEG of 1024x1024 whose last scan is repeated: little to store, and each one a whole pass."""
    encoded = save(Image.new("RGB", (1024, 1024), "gray"), "JPEG", progressive=True)
    last = encoded.rindex(b"\xff\xda")
    return encoded[:last] + encoded[last:-2] * count + b"\xff\xd9"


def test_scans_are_counted_up_to_the_end_of_the_image() -> None:
    assert count_scans(save(picture(SMOOTH), "JPEG")) == 1
    assert count_scans(many_scans(90)) == count_scans(many_scans(0)) + 90 == 99
    assert count_scans(many_scans(3)[:-2]) == 12
    # What lies within the limit is decoded.
    assert load_image(many_scans(20), limits=ImageLimits()).size == (1024, 1024)


def cmyk_reference(samples: Pixels) -> Pixels:
    light = 255 - samples.astype(float)
    return np.rint(light[..., :3] * light[..., 3:] / 255)


CMYK: Pixels = np.concatenate([RGB, GRAY[..., None]], axis=2)
RGBA: Pixels = np.concatenate([RGB, ALPHA[..., None]], axis=2)
MONO_ROWS = b"".join(b"\x00" + np.packbits(row).tobytes() for row in BITS)
BMP_RGB = b"".join(row[:, ::-1].tobytes() + b"\x00" * (-3 * W % 4) for row in RGB[::-1])
SEQUENCE = [picture(RGB), picture(255 - RGB)]


def accepted() -> dict[str, Callable[[], Kind]]:
    """Kinds that show an image."""
    shows: dict[str, Callable[[], Kind]] = {
        "PNG RGB": lambda: Kind(encoded=save(picture(RGB), "PNG"), shows=RGB),
        "PNG RGBA": lambda: Kind(encoded=save(picture(RGBA), "PNG"), shows=on_white(RGB, ALPHA), within=1),
        "PNG gray": lambda: Kind(encoded=save(picture(GRAY), "PNG"), shows=gray(GRAY)),
        "PNG gray and alpha": lambda: Kind(
            encoded=save(picture(np.stack([GRAY, ALPHA], axis=2)), "PNG"), shows=on_white(gray(GRAY), ALPHA), within=1
        ),
        "PNG 1 bit": lambda: Kind(encoded=png(W, H, 1, 0, MONO_ROWS), shows=gray(BITS * 255)),
        "PNG 2 bits": lambda: Kind(encoded=png(4, 1, 2, 0, b"\x00\x1b"), shows=gray(np.array([[0, 85, 170, 255]]))),
        "PNG 4 bits": lambda: Kind(encoded=png(2, 1, 4, 0, b"\x00\x3f"), shows=gray(np.array([[51, 255]]))),
        "PNG 16-bit gray": lambda: Kind(encoded=png(W, H, 16, 0, png_rows(WIDE)), shows=wide(WIDE)),
        "PNG 16-bit RGB": lambda: Kind(
            encoded=png(W, H, 16, 2, png_rows(RGB.astype(np.uint16) * 257)), shows=RGB
        ),
        "PNG 16-bit RGBA": lambda: Kind(
            encoded=png(W, H, 16, 6, png_rows(RGBA.astype(np.uint16) * 257)), shows=on_white(RGB, ALPHA), within=1
        ),
        "PNG palette": lambda: Kind(encoded=save(palette_image(), "PNG"), shows=PALETTE[INDEX]),
        "PNG palette with alpha": lambda: Kind(
            encoded=save(palette_image(), "PNG", transparency=bytes([255, 0, 128, 255])),
            shows=on_white(PALETTE[INDEX], np.array([255, 0, 128, 255])[INDEX]),
            within=1,
        ),
        "PNG colour key": lambda: Kind(
            encoded=png(2, 1, 8, 2, b"\x00\x01\x02\x03\x04\x05\x06", chunk(b"tRNS", bytes([0, 1, 0, 2, 0, 3]))),
            shows=np.array([[[255, 255, 255], [4, 5, 6]]]),
        ),
        "PNG animation": lambda: Kind(
            encoded=save(SEQUENCE[0], "PNG", save_all=True, append_images=SEQUENCE[1:]), shows=RGB
        ),
        "PNG with a long text": lambda: Kind(
            encoded=png(W, H, 8, 2, png_rows(RGB.reshape(H, -1)), chunk(b"tEXt", b"k\x00" + b"x" * 200_000)), shows=RGB
        ),
        "PNG with a broken colour profile": lambda: Kind(
            encoded=png(W, H, 8, 2, png_rows(RGB.reshape(H, -1)), chunk(b"iCCP", b"n\x00\x00not deflated")), shows=RGB
        ),
        "JPEG RGB": lambda: Kind(encoded=save(picture(SMOOTH), "JPEG", quality=95), shows=SMOOTH, within=4),
        "JPEG gray": lambda: Kind(
            encoded=save(picture(SMOOTH[..., 0]), "JPEG", quality=95), shows=gray(SMOOTH[..., 0]), within=2
        ),
        "JPEG progressive": lambda: Kind(
            encoded=save(picture(SMOOTH), "JPEG", progressive=True, quality=95), shows=SMOOTH, within=4
        ),
        "JPEG CMYK": lambda: Kind(
            encoded=save(Image.new("CMYK", (24, 16), (0, 255, 255, 0)), "JPEG", quality=100),
            shows=np.broadcast_to(np.array([255, 0, 0]), (16, 24, 3)),
            within=3,
        ),
        "JPEG of several images": lambda: Kind(
            encoded=save(picture(SMOOTH), "MPO", save_all=True, append_images=[picture(255 - SMOOTH)], quality=95),
            shows=SMOOTH,
            within=4,
        ),
        "JPEG with a film behind it": lambda: Kind(
            encoded=save(picture(SMOOTH), "JPEG", quality=95) + b"\xff\xda\x00" * 5000, shows=SMOOTH, within=4
        ),
        "WebP lossless": lambda: Kind(encoded=save(picture(RGB), "WEBP", lossless=True), shows=RGB),
        "WebP lossless and alpha": lambda: Kind(
            encoded=save(picture(RGBA), "WEBP", lossless=True, exact=True), shows=on_white(RGB, ALPHA), within=1
        ),
        "WebP lossy": lambda: Kind(encoded=save(picture(SMOOTH), "WEBP", quality=95), shows=SMOOTH, within=8),
        "WebP animation": lambda: Kind(
            encoded=save(SEQUENCE[0], "WEBP", lossless=True, save_all=True, append_images=SEQUENCE[1:]), shows=RGB
        ),
        "GIF": lambda: Kind(encoded=save(palette_image(), "GIF"), shows=PALETTE[INDEX]),
        "GIF with transparency": lambda: Kind(
            encoded=save(palette_image(), "GIF", transparency=2),
            shows=np.where((INDEX == 2)[..., None], 255, PALETTE[INDEX]),
        ),
        "GIF animation": lambda: Kind(
            encoded=save(palette_image(), "GIF", save_all=True, append_images=[palette_image().rotate(180)]),
            shows=PALETTE[INDEX],
        ),
        "BMP 24 bits": lambda: Kind(encoded=bmp(W, H, 24, BMP_RGB), shows=RGB),
        "BMP from the top": lambda: Kind(
            encoded=bmp(W, -H, 24, b"".join(r[:, ::-1].tobytes() + b"\x00" * (-3 * W % 4) for r in RGB)), shows=RGB
        ),
        "BMP 8 bits": lambda: Kind(
            encoded=bmp(4, 1, 8, bytes([0, 1, 2, 3]), palette=b"".join(bytes([*c[::-1], 0]) for c in PALETTE.tolist())),
            shows=PALETTE[None],
        ),
        "BMP in runs": lambda: Kind(
            encoded=bmp(
                4, 1, 8, b"\x02\x01\x02\x03\x00\x00\x00\x01", compression=1,
                palette=b"".join(bytes([*c[::-1], 0]) for c in PALETTE.tolist()),
            ),
            shows=PALETTE[[1, 1, 3, 3]][None],
        ),
        "TIFF RGB": lambda: Kind(encoded=save(picture(RGB), "TIFF"), shows=RGB),
        "TIFF RGBA": lambda: Kind(encoded=save(picture(RGBA), "TIFF"), shows=on_white(RGB, ALPHA), within=1),
        "TIFF LZW": lambda: Kind(encoded=save(picture(RGB), "TIFF", compression="tiff_lzw"), shows=RGB),
        "TIFF deflate": lambda: Kind(encoded=save(picture(RGB), "TIFF", compression="tiff_adobe_deflate"), shows=RGB),
        "TIFF fax": lambda: Kind(
            encoded=save(picture(BITS * 255).convert("1"), "TIFF", compression="group4"), shows=gray(BITS * 255)
        ),
        "TIFF CMYK": lambda: Kind(encoded=save(picture(CMYK, "CMYK"), "TIFF"), shows=cmyk_reference(CMYK), within=1),
        "TIFF 16-bit gray": lambda: Kind(encoded=save(picture(WIDE), "TIFF"), shows=wide(WIDE)),
        "TIFF where white is zero": lambda: Kind(
            encoded=tiff(plain_tiff(W, H, t262=(3, 1, 0)), GRAY.tobytes()), shows=gray(255 - GRAY)
        ),
        "TIFF of several pages": lambda: Kind(
            encoded=save(SEQUENCE[0], "TIFF", save_all=True, append_images=SEQUENCE[1:]), shows=RGB
        ),
        "TIFF with 5,000 tags": lambda: Kind(
            encoded=tiff(
                {**plain_tiff(W, H), **dict.fromkeys(range(60000, 65000), (3, 1, 7))}, GRAY.tobytes()
            ),
            shows=gray(GRAY),
        ),
        "TIFF that claims a strip of 4 GB": lambda: Kind(
            encoded=tiff(plain_tiff(W, H, t279=(4, 1, 2**32 - 1)), GRAY.tobytes()), shows=gray(GRAY)
        ),
        "PPM": lambda: Kind(encoded=save(picture(RGB), "PPM"), shows=RGB),
        "JPEG with scans in its metadata": lambda: Kind(
            encoded=save(picture(SMOOTH), "JPEG", quality=95, icc_profile=b"\xff\xda\x00" * 20_000),
            shows=SMOOTH, within=4
        ),
        "PGM 16 bits": lambda: Kind(
            encoded=b"P5 %d %d 65535\n" % (W, H) + WIDE.astype(">u2").tobytes(), shows=wide(WIDE)
        ),
        "PGM as text": lambda: Kind(encoded=b"P2 3 1 15\n0 15 5\n", shows=gray(np.array([[0, 255, 85]]))),
        "PBM": lambda: Kind(
            encoded=b"P4 %d %d\n" % (W, H) + b"".join(np.packbits(1 - row).tobytes() for row in BITS),
            shows=gray(BITS * 255)
        ),
        "one pixel": lambda: Kind(encoded=save(picture(RGB[:1, :1]), "PNG"), shows=RGB[:1, :1]),
    }  # fmt: skip
    for number in range(1, 9):
        for kind in ("PNG", "TIFF", "WEBP"):
            shows[f"{kind} orientation {number}"] = partial(_oriented, kind, number)
    shows["JPEG orientation 6"] = lambda: Kind(
        encoded=save(picture(SMOOTH), "JPEG", exif=exif(6), quality=95), shows=turned(SMOOTH, 6), within=4
    )
    for number in (1, 6, 7):
        shows[f"AVIF orientation {number}"] = partial(_avif, number)
    shows["orientation 0, which does not exist"] = lambda: Kind(
        encoded=save(picture(RGB), "PNG", exif=exif(0)), shows=RGB
    )
    return shows


def ftyp(brand: bytes) -> bytes:
    return struct.pack(">I", 24) + b"ftyp" + brand + b"\x00" * 12


def refused() -> dict[str, Callable[[], Kind]]:
    """Kinds that are no image, or one that must not be decoded."""
    strip = np.zeros(4, dtype=np.uint8).tobytes()
    bomb = zlib.compress(b"x" * 90_000_000, 9)
    named: dict[str, tuple[Callable[[], bytes], str]] = {
        "no bytes": (lambda: b"", "empty"),
        "EPS": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "EPS"),
        "EPS with a DOS header": (lambda: b"\xc5\xd0\xd3\xc6" + b"\x00" * 40, "EPS"),
        "PDF": (lambda: b"%PDF-1.7\n", "PDF"),
        "SVG": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', "SVG"),
        "SVG with an XML header": (lambda: b'\n<?xml version="1.0"?><svg/>', "SVG"),
        "SVG with a byte order mark": (lambda: b"\xef\xbb\xbf<svg/>", "SVG"),
        "web page": (lambda: b"<!doctype html><title>log in</title>", "web page"),
        "HEIC": (lambda: ftyp(b"heic"), "this is HEIC"),
        "AVIF": (lambda: ftyp(b"avif"), "this is AVIF"),
        "DICOM": (lambda: bytes(128) + b"DICM" + bytes(40), "this is DICOM"),
        "video": (lambda: ftyp(b"isom"), "this is a video"),
        "Photoshop": (lambda: b"8BPS\x00\x01", "Photoshop"),
        "JPEG 2000": (lambda: b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
        "icon": (lambda: save(picture(RGB), "ICO"), "none of them"),
        "Targa": (lambda: save(picture(RGB), "TGA"), "none of them"),
        "zip": (lambda: b"PK\x03\x04" + b"\x00" * 40, "none of them"),
        "Git LFS pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS"),
        "float TIFF": (lambda: save(picture(RGB[..., 0].astype(np.float32)), "TIFF"), "no agreed brightness range"),
        "32-bit TIFF": (lambda: save(picture(WIDE.astype(np.int32) * 9), "TIFF"), "no agreed brightness range"),
        "Lab TIFF": (lambda: save(picture(RGB, "LAB"), "TIFF"), "no agreed brightness range"),
        "PNG of no width": (lambda: png(0, 5, 8, 2, b""), "header is broken|no image"),
        "TIFF of no height": (lambda: tiff(plain_tiff(4, 0), strip), "broken|no image"),
        "BMP of no height": (lambda: bmp(4, 0, 24, b""), "broken|no image"),
        "GIF of no width": (lambda: gif((0, 0), (0, 0, 0, 0)), "broken|no image"),
        "PNG bomb": (lambda: png(60_000, 60_000, 8, 0, b"\x00" * 10), "pixels"),
        "PNG just above the limit": (lambda: png(8_000, 8_001, 8, 0, b""), "--max_image_pixels"),
        "WebP bomb": (lambda: webp_header(16_383, 16_383), "pixels|broken"),
        "BMP bomb": (lambda: bmp(30_000, 30_000, 1, b""), "pixels"),
        "BMP of negative width": (lambda: bmp(-5, 5, 24, b"\x00" * 80), "broken|pixels"),
        "TIFF bomb": (lambda: tiff(plain_tiff(65_000, 65_000), strip), "pixels"),
        "GIF bomb": (lambda: gif((9_000, 9_000), (0, 0, 1, 1)), "--max_image_pixels"),
        "GIF with a frame beyond its screen": (lambda: gif((1, 1), (0, 0, 9_000, 9_000)), "--max_image_pixels"),
        "PPM bomb": (lambda: b"P6 99999 99999 255\n", "pixels"),
        "TIFF tile larger than the image": (lambda: huge_tile(), "broken|memory"),
        "TIFF whose directory is its own next": (lambda: looped(), "cut off|broken"),
        "PNG text that unpacks to 90 MB": (
            lambda: png(1, 1, 8, 0, b"\x00\x00", chunk(b"zTXt", b"k\x00\x00" + bomb)), "broken"
        ),
        "JPEG of 3,000 scans": (lambda: many_scans(3000), "scans"),
        "long strip": (lambda: png(2_001, 10, 8, 0, b""), "Crop it"),
        "tall strip": (lambda: png(10, 2_001, 8, 0, b""), "Crop it"),
    }  # fmt: skip
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM"):
        named[f"{kind} cut off"] = (partial(_cut, kind), "cut off|broken")
    return {name: partial(_refused, make, reason) for name, (make, reason) in named.items()}


def _refused(make: Callable[[], bytes], reason: str) -> Kind:
    return Kind(encoded=make(), refused=reason)


def _cut(kind: str) -> bytes:
    shown = picture(np.random.default_rng(3).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    encoded = save(shown, kind)
    return encoded[: len(encoded) * 2 // 3]


def _oriented(kind: str, number: int) -> Kind:
    options = {"lossless": True} if kind == "WEBP" else {}
    return Kind(encoded=save(picture(RGB), kind, exif=exif(number), **options), shows=turned(RGB, number))


def huge_tile() -> bytes:
    """A TIFF of 16x16 pixels whose one tile claims to be 60,000 pixels wide and high."""
    entries = plain_tiff(
        16, 16, t259=(3, 1, 5), t322=(4, 1, 60_000), t323=(4, 1, 60_000), t324=(4, 1, 8), t325=(4, 1, 4)
    )
    return tiff({tag: entry for tag, entry in entries.items() if tag not in (273, 278, 279)}, b"\x80\x00\x20\x50")


def looped() -> bytes:
    """A TIFF whose directory, and whose EXIF directory, are the directory itself."""
    encoded = bytearray(tiff(plain_tiff(W, H, t34665=(4, 1, 8 + 4), t259=(3, 1, 5)), b"\x00" * 4))
    encoded[-4:] = struct.pack("<I", 12)
    return bytes(encoded)


def _avif(number: int) -> Kind:
    halves = SMOOTH.copy()
    halves[:, :12] = 30
    encoded = save(picture(halves), "AVIF", exif=exif(number), quality=100, subsampling="4:4:4")
    return Kind(encoded=encoded, shows=turned(halves, number), within=4)


ACCEPTED, REFUSED = accepted(), refused()


def test_there_are_enough_kinds() -> None:
    assert len(ACCEPTED) + len(REFUSED) >= 60


@pytest.mark.parametrize("name", list(ACCEPTED))
def test_the_image_is_what_was_written(name: str) -> None:
    kind = ACCEPTED[name]()
    assert kind.shows is not None
    loaded = load_image(kind.encoded, limits=ImageLimits())
    seen = np.asarray(loaded).astype(int)
    expected = np.asarray(kind.shows).astype(int)
    assert seen.shape == expected.shape
    assert np.abs(seen - expected).max() <= kind.within
    assert loaded.mode == "RGB"
    assert loaded.info == {}
    # The control: another image is not within that distance.
    assert np.abs(seen - (expected + 128) % 256).max() > kind.within


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_no_image_is_refused_with_file_row_and_reason(name: str, tmp_path: Path) -> None:
    from vlm_lora.batching.encoding import RowEncoder

    kind = REFUSED[name]()
    (tmp_path / "it.png").write_bytes(kind.encoded)
    row = {"image": "it.png", "question": "What?", "answer": "Red."}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    data = load_splits(DataConfig(dataset_name=str(tmp_path / "train.jsonl")), need_train=True, need_validation=False)
    assert data.train is not None
    encoder = RowEncoder.__new__(RowEncoder)  # images need no processor
    encoder._canvases, encoder._load_image, encoder._image_limits = (), load_image, ImageLimits()
    encoder._kept = None
    conversation = data.train[0]
    with pytest.raises(
        ImageError, match=rf"(?s)^{tmp_path}/train\.jsonl row 0 \(line 1\): {tmp_path}/it\.png: .*({kind.refused})"
    ):
        encoder._image(conversation.images[0], conversation)


def test_the_name_of_a_file_does_not_matter(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.tiff", "a.eps", "a"):
        (tmp_path / name).write_bytes(save(picture(RGB), "PNG"))
        assert np.array_equal(np.asarray(load_image(tmp_path / name, limits=ImageLimits())), RGB)
