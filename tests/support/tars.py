"""Small WebDataset tars for tests, written by Python's tarfile and not by the project's own writer."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

from support.datasets import draw_chart, encode_png


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], *, format: int = tarfile.USTAR_FORMAT) -> Path:
    """Write a tar of the given members, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def chart_members(number: int, *, size: tuple[int, int] = (32, 24)) -> list[tuple[str, bytes]]:
    """Return JSON and image of one sample; no other number gives the same image."""
    picture, question, answer = draw_chart(number, size)
    record = {"question": f"{question} ({number})", "answer": answer, "image": {"width": size[0], "height": size[1]}}
    return [(f"{number:06d}.json", json.dumps(record).encode()), (f"{number:06d}.png", encode_png(picture))]


def write_chart_tar(path: Path, numbers: Iterable[int], *, size: tuple[int, int] = (32, 24)) -> Path:
    """Write a tar of charts, one sample a number."""
    return write_tar(path, [member for number in numbers for member in chart_members(number, size=size)])
