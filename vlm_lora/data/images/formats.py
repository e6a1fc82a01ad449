"""Which image formats are read, how a file of each begins, and what to say of those that are not read.

HEIC is decoded by pillow-heif, and AVIF by Pillow from 11.3 on, before by pillow-avif-plugin; both come with the extra
`images` and are looked for where a file needs them.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from PIL import features

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is decoded with Pillow alone. Formats that run programs or fetch files (EPS, PDF, SVG, ...) never are."""

MAGICS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"BM", b"GIF8", b"II*\x00", b"MM\x00*")
"""First bytes of the formats that bytes and base64 text are recognised by; HEIC and AVIF are by their brands."""

SUFFIXES = frozenset(
    [
        *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),
        *(".heic", ".heif", ".hif", ".avif"),
    ]
)
"""Ends of the names of image files, in small letters."""

REFUSED_SUFFIXES = frozenset({".dcm", ".dicom"})
"""Those of images that are not read: a column of such names is one of images, and each row says why it is refused."""

_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_AVIF = frozenset({b"avif", b"avis"})

_REFUSED = (
    (b"%!PS", "EPS/PostScript, a program"),
    (b"\xc5\xd0\xd3\xc6", "EPS/PostScript, a program"),
    (b"%PDF", "PDF"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML or SVG"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"8BPS", "Photoshop"),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file, which `git lfs pull` fetches"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
)
"""First bytes of files that people take for images, and what to call them."""

_DICOM = (
    "this is DICOM. Which of its brightness values are black and white has to be chosen: write each image as a PNG "
    "of 8 or 16 bits, for example with pydicom (apply_voi_lut), and name those files"
)
_INSTALL = 'its decoder is not installed: pip install "vlm-lora[images]"'


def container(encoded: bytes) -> str | None:
    """Return `HEIF` or `AVIF` for a file that names one of their brands, `video` for another of that kind, else None.

    Args:
        encoded: at least its first bytes.
    """
    if encoded[4:8] != b"ftyp":
        return None
    brands = {encoded[8:12]}
    end = min(int.from_bytes(encoded[:4], "big"), 256, len(encoded))
    brands |= {encoded[at : at + 4] for at in range(16, end - 3, 4)}
    if brands & _AVIF:
        return "AVIF"
    return "HEIF" if brands & _HEIC else "video"


def begins_as_image(encoded: bytes) -> bool:
    """Tell from its first bytes whether a file is of a known image format."""
    return encoded.startswith(MAGICS) or container(encoded) in ("HEIF", "AVIF")


def formats_for(encoded: bytes) -> tuple[str, ...]:
    """Return the formats that Pillow may try on a file; decoders in packages of their own are made known to it.

    Args:
        encoded: at least its first bytes.
    """
    kind = container(encoded)
    return (*FORMATS, kind) if kind is not None and _has_decoder(kind) else FORMATS


def head(source: Path | bytes) -> bytes:
    """Return the bytes that tell a file's format. Raises OSError."""
    if isinstance(source, bytes):
        return source[:256]
    with source.open("rb") as stream:
        return stream.read(256)


def explain_unreadable(name: str, encoded: bytes) -> str:
    """Say what a file is that no decoder opens, and what to do.

    Args:
        name: what messages call it.
        encoded: at least its first bytes.
    """
    read = f"{name}: not a readable image: formats are {', '.join(FORMATS)}, HEIC and AVIF"
    if encoded[128:132] == b"DICM":
        return f"{read}; {_DICOM}."
    kind = container(encoded)
    own = {"HEIF": "HEIC", "AVIF": "AVIF"}.get(str(kind))
    if own is not None and not _has_decoder(str(kind)):
        return f"{read}; this is {own}, and {_INSTALL}, or convert it to PNG or JPEG."
    start = encoded[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    called = next((words for magic, words in _REFUSED if start.startswith(magic.lower())), None)
    called = "a video" if kind == "video" else f"{own}, and its header is broken" if own is not None else called
    what = f"this is {called}" if called else "this is none of them, or its header is broken"
    return f"{read}; {what}. Convert it to PNG or JPEG."


@cache
def _has_decoder(kind: str) -> bool:
    """Make a format's decoder known to Pillow; say whether there is one."""
    if kind == "AVIF":
        if features.check("avif"):
            return True
        if find_spec("pillow_avif") is None:
            return False
        import_module("pillow_avif")
        return True
    if kind != "HEIF" or find_spec("pillow_heif") is None:
        return False
    import_module("pillow_heif").register_heif_opener(thumbnails=False)
    return True
