"""10,000 damaged image files: each is loaded as RGB of its header's size, or is an ImageError; none hangs.

The damage is seeded, so every run sees the same files.
"""

from __future__ import annotations

import faulthandler
import io
import resource
import signal
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from types import FrameType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlm_lora.data.images.loader import ImageLimits, load_image
from vlm_lora.errors import ImageError

FILES = 10_000
BATCH_SECONDS = 120
"""For one seed's files together: fifty times what they take."""
LIMITS = ImageLimits(max_pixels=1_000_000, max_bytes=1_000_000)


def _image(mode: str = "RGB", size: tuple[int, int] = (13, 9)) -> Image.Image:
    rows = np.random.default_rng(7).integers(0, 256, size=(size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(rows, "RGBA").convert(mode)


def _encode(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    _image(mode).save(stream, kind, **options)
    return stream.getvalue()


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "an image"
    exif.get_ifd(0x8769)[0x9003] = "2024:01:01 00:00:00"
    return exif


def _rle_bmp() -> bytes:
    """A BMP with run-length coding, which Pillow reads and does not write."""
    runs = b"".join(bytes([5, 3, 8, 7]) + b"\x00\x00" for _ in range(9)) + b"\x00\x02\x01\x01\x00\x04abcd\x00\x01"
    palette = bytes(range(64))
    head = struct.pack("<IiiHHIIiiII", 40, 13, 9, 1, 8, 1, len(runs), 0, 0, 16, 16)
    offset = 14 + len(head) + len(palette)
    return struct.pack("<2sIHHI", b"BM", offset + len(runs), 0, 0, offset) + head + palette + runs


def _frames() -> list[Image.Image]:
    return [_image("P"), _image("P").rotate(180)]


SEEDS = {
    "jpeg": _encode("JPEG", exif=_exif(), icc_profile=b"x" * 200),
    "jpeg progressive": _encode("JPEG", progressive=True, optimize=True),
    "jpeg cmyk": _encode("JPEG", "CMYK"),
    "png": _encode("PNG", "RGBA", exif=_exif()),
    "png palette": _encode("PNG", "P", transparency=3),
    "png animation": _encode("PNG", save_all=True, append_images=[_image()]),
    "webp": _encode("WEBP", "RGBA", lossless=True, exif=_exif()),
    "webp lossy": _encode("WEBP", save_all=True, append_images=[_image()]),
    "gif": _encode("GIF", "P", save_all=True, append_images=_frames(), transparency=1),
    "tiff": _encode("TIFF", exif=_exif()),
    "tiff lzw": _encode("TIFF", "RGBA", compression="tiff_lzw"),
    "tiff deflate": _encode("TIFF", "L", compression="tiff_deflate", save_all=True, append_images=[_image("L")]),
    "tiff fax": _encode("TIFF", "1", compression="group4"),
    "tiff jpeg": _encode("TIFF", compression="jpeg"),
    "bmp": _encode("BMP"),
    "bmp runs": _rle_bmp(),
    "ppm": _encode("PPM"),
    "pgm plain": b"P2\n# x\n4 3 255\n" + b" ".join(str(v).encode() for v in range(12)) + b"\n",
}

_ODD = (0, 1, 2, 4, 16, 127, 128, 254, 255)


def damage(encoded: bytes, numbers: np.random.Generator) -> bytes:
    """Return the file with flipped, set, cut, inserted, repeated or zeroed bytes, one to four times."""
    data = bytearray(encoded)
    for _ in range(int(numbers.integers(1, 5))):
        place = int(numbers.integers(0, max(len(data), 1)))
        length = int(numbers.integers(1, 9))
        kind = int(numbers.integers(0, 8))
        if kind == 0 and data:
            data[place] ^= 1 << int(numbers.integers(0, 8))
        elif kind == 1 and data:
            data[place] = _ODD[int(numbers.integers(0, len(_ODD)))]
        elif kind == 2:
            del data[place:]
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place:place] = numbers.bytes(length)
        elif kind == 5:
            data[place:place] = data[place : place + 4 * length]
        elif kind == 6:
            data[place : place + length] = b"\xff" * length
        else:
            data[place : place + 4] = struct.pack("<I", int(numbers.integers(0, 2**32)))
    return bytes(data)


def repaired(png: bytes) -> bytes:
    """Return a PNG whose checksums fit again, so that damage reaches the decoder."""
    whole, position = png[:8], 8
    while position + 12 <= len(png):
        (length,) = struct.unpack(">I", png[position : position + 4])
        chunk = png[position + 4 : position + 8 + length]
        if len(chunk) < length + 4:
            break
        whole += struct.pack(">I", length) + chunk + struct.pack(">I", zlib.crc32(chunk))
        position += 12 + length
    return whole + png[position:]


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    """Fail, with the stack, where a file takes for ever."""

    def out_of_time(number: int, frame: FrameType | None) -> None:
        faulthandler.dump_traceback()
        raise AssertionError(f"not done after {BATCH_SECONDS} s")

    before = signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(BATCH_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", list(SEEDS))
def test_damaged_files_are_loaded_or_refused(name: str) -> None:
    numbers = np.random.default_rng([sorted(SEEDS).index(name), 2024])
    outcomes: Counter[str] = Counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(-(-FILES // len(SEEDS))):
        damaged = damage(SEEDS[name], numbers)
        if name.startswith("png") and number % 2:
            damaged = repaired(damaged)
        outcomes[outcome(damaged)] += 1
    # Both happen, or the damage would test nothing.
    assert outcomes["loaded"] > 10, outcomes
    assert outcomes["refused"] > 10, outcomes
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    assert grown < 200, f"memory grew by {grown:.0f} MB"


def outcome(encoded: bytes) -> str:
    """Load a file; anything but an image within the limits or an ImageError fails the test."""
    try:
        loaded = load_image(encoded, limits=LIMITS)
    except ImageError as error:
        assert len(str(error)) < 600  # noqa: PT017
        return "refused"
    assert loaded.mode == "RGB"
    assert loaded.width * loaded.height <= LIMITS.max_pixels
    assert len(loaded.tobytes()) == loaded.width * loaded.height * 3
    return "loaded"


def test_the_undamaged_files_load() -> None:
    for name, encoded in SEEDS.items():
        assert outcome(encoded) == "loaded", name
