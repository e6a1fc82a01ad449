"""What the members of one sample are, and how they become a row: explicit decoders, nothing that runs code.

A sample is all members with one key: the name up to the first dot after its folder. The rest is the extension,
in small letters.

| Member | Column |
|---|---|
| `KEY.json` | one for each field of the object; `json` where it is no object |
| `KEY.png` (jpg, webp, ...) | `image` |
| `KEY.0.png`, `KEY.1.png` | `images`, in the order of the numbers |
| `KEY.left.png` | `left.png` |
| `KEY.txt`, `KEY.cls` | `txt`, `cls`: text |
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from vlm_lora.data.images.formats import REFUSED_SUFFIXES, SUFFIXES
from vlm_lora.errors import DataError

Kind = Literal["picture", "numbered", "named", "json", "text", "other"]

IMAGES = frozenset(suffix.removeprefix(".") for suffix in SUFFIXES | REFUSED_SUFFIXES)
TEXTS = frozenset({"txt", "text", "cls", "caption"})
CODE = frozenset({"pkl", "pickle", "pyd", "pth", "pt", "ckpt", "npy", "npz", "joblib", "dill", "cloudpickle"})
"""Formats whose usual decoders can run what the file says."""

LARGEST_IMAGE = 1024 * 1024 * 1024
LARGEST_TEXT = 64 * 1024 * 1024
"""Longest members in bytes; --max_image_bytes (256 MiB by default) is checked when an image is loaded."""

IMAGE_COLUMNS = ("image", "images")


def split_name(name: str) -> tuple[str, str] | None:
    """Return key and extension of a member; None for hidden files and names without an extension.

    >>> split_name("a.b/0001.seg.PNG")
    ('a.b/0001', 'seg.png')
    """
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or not extension or folder.split("/")[0] == "__MACOSX":
        return None
    return f"{folder}{slash}{stem}", extension.lower()


def kind_of(extension: str) -> Kind:
    """Return what a member with this extension is."""
    front, dot, last = extension.rpartition(".")
    if last in IMAGES:
        return "picture" if not dot else ("numbered" if front.isascii() and front.isdigit() else "named")
    if extension == "json":
        return "json"
    return "text" if extension in TEXTS else "other"


def check_member(extension: str, size: int) -> str | None:
    """Return why a member is refused, from its extension and size alone, or None."""
    last = extension.rpartition(".")[2]
    if last in CODE:
        return (
            f"files ending in .{last} are refused: their usual decoders can run code that the file brings. "
            "Write images as PNG or JPEG and everything else as JSON"
        )
    if last == "json" and extension != "json":
        return (
            "a key ends at the first dot of a name, so this would be a second JSON of its sample. Use keys without dots"
        )
    kind = kind_of(extension)
    most = LARGEST_TEXT if kind in ("json", "text") else LARGEST_IMAGE
    return f"{size} bytes, more than the {most} allowed" if kind != "other" and size > most else None


def check_sample(extensions: Sequence[str]) -> str | None:
    """Return what a sample lacks or has too many of, or None."""
    kinds = [kind_of(extension) for extension in extensions]
    if not {"picture", "numbered", "named"} & set(kinds):
        return "has no image"
    if not {"json", "text"} & set(kinds):
        return "has an image and no JSON or text"
    if kinds.count("picture") > 1:
        return "has two images; several are numbered, KEY.0.png and KEY.1.png"
    if "picture" in kinds and "numbered" in kinds:
        return "has a numbered image and one without a number"
    numbers = [int(extension.partition(".")[0]) for extension in extensions if kind_of(extension) == "numbered"]
    return "has two images of one number" if len(set(numbers)) < len(numbers) else None


def read_text(encoded: bytes) -> str:
    """Return a text member's text.

    Raises:
        DataError: Not UTF-8; the message is the end of a sentence.
    """
    try:
        return encoded.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text ({error.reason} at byte {error.start})") from error


def read_json(encoded: bytes) -> Any:
    """Return a JSON member's value.

    Raises:
        DataError: Not JSON; the message is the end of a sentence.
    """
    try:
        return json.loads(read_text(encoded))
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}") from error


def make_row(key: str, payloads: Mapping[str, bytes], *, plural: bool) -> dict[str, Any]:
    """Decode a sample's members to a row.

    Args:
        key: The sample's key, which becomes the column `__key__`.
        payloads: Bytes by extension; extensions that are not read may be left out.
        plural: Give images as the list `images`, also a single one.

    Raises:
        DataError: Text or JSON that cannot be read; the message begins with the extension.
    """
    members: dict[str, Any] = {}
    numbered: dict[int, bytes] = {}
    value: Any = {}
    for extension, encoded in payloads.items():
        kind = kind_of(extension)
        try:
            if kind == "json":
                value = read_json(encoded)
            elif kind == "text":
                members[extension] = read_text(encoded)
        except DataError as error:
            raise DataError(f".{extension}: {error}") from error
        if kind == "named":
            members[extension] = encoded
        elif kind in ("picture", "numbered"):
            numbered[int(extension.partition(".")[0]) if kind == "numbered" else 0] = encoded
    if numbered:
        pictures = [numbered[number] for number in sorted(numbered)]
        members["images" if plural else "image"] = pictures if plural else pictures[0]
    members["__key__"] = key
    fields = value if isinstance(value, dict) else {"json": value}
    return {**_renamed(fields, {*members, *(IMAGE_COLUMNS if numbered else ())}), **members}


def _renamed(fields: Mapping[str, Any], taken: set[str]) -> dict[str, Any]:
    """Return the JSON's fields; one that is called as a member's column gets `_info` added to its name."""
    renamed: dict[str, Any] = {}
    for name, value in fields.items():
        free = f"{name}_info" if name in taken else name
        while free in taken or (free != name and free in fields):
            free += "_"
        renamed[free] = value
    return renamed
