"""Tars cut at 300 places, and with one of 300 bytes flipped: all cuts are found, and no sample is lost in silence.

Which flips cannot be noticed, and what they do, is stated here and holds for every seeded place:

- without hashes (a tar of another tool): bytes that no reader uses (padding after a member, behind the number in a
  header's checksum field), and content that its own format does not protect (a letter inside a JSON text). Every
  sample is still there; images in PNG are protected by PNG's own checksums.
- with the index that `vlm-lora shard` writes: none, where the file's time changed with it. Where even the time is the
  same (decay of a disk), every flip inside a member is found by its CRC-32 when it is read, and all others change
  nothing that is read.
"""

from __future__ import annotations

import os
import random
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from support.tars import chart_members, write_chart_tar, write_tar
from vlm_lora.cli.main import main
from vlm_lora.data import cache_folder
from vlm_lora.data.formats.tar import index_files
from vlm_lora.data.formats.tar.index_files import beside
from vlm_lora.data.images.loader import ImageLimits, load_image
from vlm_lora.data.sources.named import open_source
from vlm_lora.errors import DataError

SAMPLES = 12
PLACES = 300


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache_folder.VARIABLE, str(tmp_path / "cache"))


def read(tar: Path) -> list[dict[str, Any]]:
    """Read every row and decode its image, as a run does."""
    rows = open_source(str(tar)).splits["train"]
    found = [dict(rows[number]) for number in range(len(rows))]
    for row in found:
        load_image(row["image"], limits=ImageLimits())
    return found


def attempt(tar: Path) -> tuple[list[dict[str, Any]], str]:
    """Return the rows, or none and the message that says why not."""
    try:
        return read(tar), ""
    except DataError as error:
        return [], str(error)


def forget_index(tar: Path) -> None:
    beside(tar).unlink(missing_ok=True)


def region(whole: bytes, place: int) -> str:
    """Say what a byte of a tar without extended headers belongs to, from the layout of tars alone."""
    position = 0
    while whole[position] != 0:
        size = int(whole[position + 124 : position + 135], 8)
        if place < position + 512:
            # Six digits, a NUL and a space; what comes after the NUL is read by nobody.
            return "unused" if place == position + 155 else "header"
        if place < position + 512 + size:
            return "json" if b".json" in whole[position : position + 100] else "png"
        position += 512 + -(-size // 512) * 512
        if place < position:
            return "unused"
    return "end"


def test_the_whole_tar_is_read(tmp_path: Path) -> None:
    """What the tests below compare with, and their negative control."""
    tar = write_chart_tar(tmp_path / "train.tar", range(SAMPLES))
    rows = read(tar)
    assert [row["image"] for row in rows] == [dict(chart_members(n))[f"{n:06d}.png"] for n in range(SAMPLES)]


def test_every_cut_is_found_and_the_last_whole_sample_is_named(tmp_path: Path) -> None:
    tar = write_chart_tar(tmp_path / "train.tar", range(SAMPLES))
    whole = tar.read_bytes()
    content = len(whole.rstrip(b"\0"))
    needed = -(-content // 512) * 512 + 1024
    for cut in random.Random(0).sample(range(needed), PLACES):
        tar.write_bytes(whole[:cut])
        with pytest.raises(DataError) as caught:
            read(tar)
        said = str(caught.value)
        assert str(tar) in said
        assert "cut off" in said or (cut < 512 and ("no tar" in said or "empty" in said))
        complete = [n for n in range(SAMPLES) if whole.index(f"{n:06d}.png".encode()) + 512 + png_size(n) <= cut]
        assert (f"last whole sample is '{complete[-1]:06d}'" if complete else "no whole sample") in said
    tar.write_bytes(whole[:needed])
    assert len(read(tar)) == SAMPLES, "what lies behind the second block of zeros may be cut"


def png_size(number: int) -> int:
    return -(-len(dict(chart_members(number))[f"{number:06d}.png"]) // 512) * 512


def test_a_flipped_byte_loses_no_sample_in_silence(tmp_path: Path) -> None:
    """A tar without hashes, indexed after the damage."""
    tar = write_chart_tar(tmp_path / "train.tar", range(SAMPLES))
    whole, good = tar.read_bytes(), read(tar)
    generator, outcomes = random.Random(1), Counter[tuple[str, str]]()
    for place in generator.sample(range(len(whole)), PLACES):
        content = bytearray(whole)
        content[place] ^= generator.randrange(1, 256)
        tar.write_bytes(content)
        forget_index(tar)
        where = region(whole, place)
        rows, said = attempt(tar)
        if said:
            assert str(tar) in said or where == "png"
            outcomes[where, "found"] += 1
            continue
        assert len(rows) == SAMPLES
        assert where in ("unused", "json", "png"), f"byte {place} ({where}) was not noticed"
        outcomes[where, "same" if rows == good else "changed"] += 1
        if where == "unused":
            assert rows == good
        pictures = [load_image(row["image"], limits=ImageLimits()).tobytes() for row in rows]
        assert pictures == [load_image(row["image"], limits=ImageLimits()).tobytes() for row in good]
    assert outcomes["header", "found"] > 50
    assert outcomes["png", "found"] > 10
    assert outcomes["unused", "same"] > 50
    assert outcomes["end", "found"] > 10


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_flip_in_a_long_name_loses_no_sample_in_silence(tmp_path: Path, format: int) -> None:
    """Long names stand in records that no checksum covers: image and JSON no longer have one key then."""
    members = [(f"{'x' * 110}/{name}", content) for n in range(4) for name, content in chart_members(n)]
    tar = write_tar(tmp_path / "train.tar", members, format=format)
    whole, good = tar.read_bytes(), read(tar)
    generator, outcomes = random.Random(4), Counter[str]()
    names = [at for at in range(len(whole)) if whole[at : at + 9] == b"xxxxxxxxx" and at % 512 < 200]
    for place in [*generator.sample(names, 60), *generator.sample(range(len(whole)), 60)]:
        content = bytearray(whole)
        content[place] ^= generator.randrange(1, 256)
        tar.write_bytes(content)
        forget_index(tar)
        rows, said = attempt(tar)
        outcomes["found" if said else "there"] += 1
        if not said:
            assert len(rows) == len(good)
            assert [row["image"] for row in rows] == [row["image"] for row in good]
    assert outcomes["found"] >= 40


def shards(tmp_path: Path) -> Path:
    one = write_chart_tar(tmp_path / "in" / "IN.tar", range(SAMPLES))
    assert main(["shard", "--input", str(one), "--out_dir", str(tmp_path / "D"), "--num_shards", "1"]) == 0
    return tmp_path / "D" / "train-000000.tar"


def test_with_hashes_every_flip_is_found(tmp_path: Path) -> None:
    tar = shards(tmp_path)
    whole = tar.read_bytes()
    kept = shutil.copyfile(beside(tar), tmp_path / "kept")
    generator = random.Random(2)
    for turn, place in enumerate(generator.sample(range(len(whole)), PLACES)):
        content = bytearray(whole)
        content[place] ^= generator.randrange(1, 256)
        tar.write_bytes(content)
        os.utime(tar, ns=(turn + 1, turn + 1))
        with pytest.raises(DataError, match="is not the file that"):
            read(tar)
    assert beside(tar).read_bytes() == kept.read_bytes(), "a damaged tar gets no new index"
    tar.write_bytes(whole)
    assert len(read(tar)) == SAMPLES


def test_with_hashes_decay_under_the_same_time_is_found_where_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The stamp covers the first and last 64 KiB, which is all of so small a tar; here, next to nothing.
    monkeypatch.setattr(index_files, "_END", 16)
    tar = shards(tmp_path)
    whole, good, time = tar.read_bytes(), read(tar), tar.stat().st_mtime_ns
    generator, outcomes = random.Random(3), Counter[tuple[str, str]]()
    for place in generator.sample(range(len(whole)), PLACES):
        content = bytearray(whole)
        content[place] ^= generator.randrange(1, 256)
        tar.write_bytes(content)
        os.utime(tar, ns=(time, time))
        where = region(whole, place)
        rows, said = attempt(tar)
        if said:
            assert "CRC-32" in said or ("is not the file that" in said and (place < 16 or place >= len(whole) - 16))
            outcomes[where, "found"] += 1
            continue
        assert rows == good
        outcomes[where, "same"] += 1
    assert outcomes["json", "same"] == outcomes["png", "same"] == 0
    assert outcomes["json", "found"] >= 5
    assert outcomes["png", "found"] >= 5
    assert outcomes["header", "same"] >= 5, "the index knows where members lie; headers are not read again"
