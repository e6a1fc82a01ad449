"""`vlm-lora shard`: every sample exactly once, byte for byte, in the tars that were asked for."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from support.datasets import chartqa_rows, draw_chart, encode_png, write_chartqa_folder, write_image, write_jsonl
from support.tars import chart_members, write_chart_tar, write_tar
from vlm_lora.cli.main import main
from vlm_lora.data import cache_folder
from vlm_lora.data.formats.tar import sharding, writing
from vlm_lora.data.sources.named import open_source
from vlm_lora.errors import DataError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache_folder.VARIABLE, str(tmp_path / "cache"))


def shard(*words: object) -> int:
    return main(["shard", *map(str, words)])


def members_of(folder: Path) -> dict[str, list[tuple[str, bytes]]]:
    """Read the tars of a folder by Python's tarfile."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found[path.name] = [(m.name, tar.extractfile(m).read()) for m in tar.getmembers()]  # type: ignore[union-attr]
    return found


def all_rows(name: object, split: str = "train") -> list[dict[str, Any]]:
    rows = open_source(str(name)).splits[split]
    return [dict(rows[number]) for number in range(len(rows))]


def test_the_ocr_tools_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = [m for n in range(11) for m in chart_members(n)]
    one = write_tar(tmp_path / "IN.tar", [*members, ("000003.txt", b"not asked for")])
    command = f"--input {one} --out-dir {tmp_path}/D --num-shards 3 --img-exts png jpg jpeg --meta-ext json"
    assert shard(*command.split(), "--shuffle", "--seed", "17", "--prefix", "eval") == 0
    found = members_of(tmp_path / "D")
    assert {name: len(inside) // 2 for name, inside in found.items()} == {
        "eval-000000.tar": 4,
        "eval-000001.tar": 4,
        "eval-000002.tar": 3,
    }
    written = [member for inside in found.values() for member in inside]
    assert Counter(written) == Counter(members)
    assert written != members, "shuffled"
    assert "11 samples in 3 tars" in capsys.readouterr().out
    assert sorted(all_rows(tmp_path / "D", "eval"), key=lambda row: row["__key__"]) == all_rows(
        write_tar(tmp_path / "plain.tar", members)
    )


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    one = write_chart_tar(tmp_path / "IN.tar", range(9))
    hashes = []
    for number, seed in enumerate((17, 17, 18)):
        out = tmp_path / str(number)
        assert shard("--input", one, "--out_dir", out, "--num_shards", 2, "--shuffle", "--seed", seed) == 0
        hashes.append([hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.glob("*.tar"))])
        record = json.loads((out / "index.json").read_text())
        assert [entry["sha256"] for entry in record["shards"]] == hashes[-1]
        assert record["samples"] == 9
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]
    with tarfile.open(tmp_path / "0" / "train-000000.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {(0, 0, 0, "", "", 0o644)}


@pytest.mark.parametrize(
    ("flag", "sizes"), [(("--samples-per-shard", 4), [4, 4, 2]), (("--num-shards", 4), [3, 3, 2, 2])]
)
def test_exact_sizes_in_the_order_of_the_input(tmp_path: Path, flag: tuple[str, int], sizes: list[int]) -> None:
    one = write_chart_tar(tmp_path / "IN.tar", range(10))
    assert shard("--input", one, "--out-dir", tmp_path / "D", *flag) == 0
    found = members_of(tmp_path / "D")
    assert [len(inside) // 2 for inside in found.values()] == sizes
    assert [member for inside in found.values() for member in inside] == [
        m for n in range(10) for m in chart_members(n)
    ]


def test_a_hub_shaped_folder_with_its_splits(tmp_path: Path) -> None:
    folder = write_chartqa_folder(tmp_path / "charts", train=5, val=2, test=0, seed=1)
    assert shard("--input", folder, "--out-dir", tmp_path / "D", "--samples-per-shard", 3) == 0
    assert sorted(p.name for p in (tmp_path / "D").glob("*.tar")) == [
        *("train-000000.tar", "train-000001.tar", "val-000000.tar")
    ]
    for split, rows in (("train", chartqa_rows(5, seed=100_000)), ("val", chartqa_rows(2, seed=140_000))):
        expected = [
            {**row, "image": row["image"]["bytes"], "__key__": f"{number:06d}"} for number, row in enumerate(rows)
        ]
        assert all_rows(tmp_path / "D", split) == expected


def test_json_lines_with_images_in_files(tmp_path: Path) -> None:
    names = ["a.png", "b.jpg", "c.webp"]
    for number, name in enumerate(names):
        write_image(tmp_path / "in" / name, seed=number)
    rows = [{"picture": [name], "question": "q ä", "answer": ["x", "y"], "image": {"width": 1}} for name in names]
    file = write_jsonl(tmp_path / "in" / "rows.jsonl", [*rows, {**rows[0], "picture": ["a.png", "b.jpg"]}])
    out = tmp_path / "D"
    assert shard("--input", file, "--out-dir", out, "--num-shards", 1, "--image-column", "picture") == 0
    found = all_rows(out)
    pictures = [(tmp_path / "in" / name).read_bytes() for name in names]
    assert [row["images"] for row in found] == [[pictures[0]], [pictures[1]], [pictures[2]], pictures[:2]]
    assert all(row["question"] == "q ä" and row["answer"] == ["x", "y"] for row in found)
    assert [row["image_info"] for row in found] == [{"width": 1}] * 4
    assert "000001.0.jpg" in [name for name, _ in members_of(out)["train-000000.tar"]]


def test_tars_with_the_same_keys_get_their_names_before_them(tmp_path: Path) -> None:
    for name in ("a.x.tar", "b.tar"):
        write_chart_tar(tmp_path / "in" / name, range(3))
    assert shard("--input", f"{tmp_path}/in/*.tar", "--out-dir", tmp_path / "D", "--num-shards", 1) == 0
    assert [row["__key__"] for row in all_rows(tmp_path / "D")] == [
        f"{t}_00000{n}" for t in ("a_x", "b") for n in range(3)
    ]
    shutil.copytree(tmp_path / "in", tmp_path / "other")
    assert shard("--input", f"{tmp_path}/*/b.tar", "--out-dir", tmp_path / "E", "--num-shards", 1) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--out-dir D --num-shards 1", "--input DATA is missing"),
        ("--input IN.tar --num-shards 1", "--out_dir DIR is missing"),
        ("--input IN.tar --out-dir D", "either --num_shards N or --samples_per_shard N"),
        ("--input IN.tar --out-dir D --num-shards 1 --samples-per-shard 1", "either --num_shards"),
        ("--input IN.tar --out-dir D --num-shards 0", "must be 1 or more"),
        ("--input IN.tar --out-dir D --num-shards 4", "there are 3 samples"),
        ("--input IN.tar --out-dir D --num-shards x", "invalid int"),
        ("--input IN.tar --out-dir D --num-shards 1 --prefix ../x", "--prefix ../x"),
        ("--input IN.tar --out-dir D --num-shards 1 --img-exts pkl", "--img_exts pkl: read are"),
        ("--input IN.tar --out-dir D --num-shards 1 --meta-ext pkl", "--meta_ext pkl: read are"),
        ("--input IN.tar --out-dir D --num-shards 1 --img-exts jpg", "000000): has no image"),
        ("--input IN.tar --out-dir D --num-shards 1 --meta-ext txt", "has an image and no JSON"),
        ("--input IN.tar --out-dir . --num-shards 1", "holds shards already (IN.tar)"),
        ("--input IN.tar --out-dir IN.tar --num-shards 1", "not a folder"),
        ("--input missing.tar --out-dir D --num-shards 1", "--input missing.tar: no such file"),
        ("--input text.jsonl --out-dir D --num-shards 1", "image"),
        ("--input half.jsonl --out-dir D --num-shards 1", "half.jsonl row 1 (line 2): has no image"),
        ("--input broken.jsonl --out-dir D --num-shards 1", "broken.jsonl row 0 (line 1): "),
        ("--input half.jsonl --out-dir D --num-shards 1 --img-exts png", "choose members of tars"),
        (
            "--input IN.tar --out-dir D --num-shards 1 --num-shard 2",
            "--num_shard: no such flag. Did you mean 'num_shards'?",
        ),
    ],
)
def test_what_cannot_be_done_says_why_and_leaves_nothing(
    tmp_path: Path, words: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_chart_tar(Path("IN.tar"), range(3))
    write_image(Path("a.png"), seed=1)
    write_jsonl(Path("text.jsonl"), [{"question": "q", "answer": "a"}])
    write_jsonl(Path("half.jsonl"), [{"image": "a.png", "question": "q"}, {"image": None, "question": "q"}])
    Path("b.png").write_bytes(Path("a.png").read_bytes()[:90])
    write_jsonl(Path("broken.jsonl"), [{"image": "b.png", "question": "q"}])
    assert shard(*words.split()) == 1
    assert said in capsys.readouterr().err
    assert not [p for p in tmp_path.rglob("*") if p.suffix == ".tar" and p.name != "IN.tar"]
    assert not list(tmp_path.rglob(".shards-*"))


def test_a_second_run_into_the_folder_is_refused(tmp_path: Path) -> None:
    one = write_chart_tar(tmp_path / "IN.tar", range(3))
    assert shard("--input", one, "--out-dir", tmp_path / "D", "--num-shards", 1) == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "D").iterdir()}
    assert shard("--input", one, "--out-dir", tmp_path / "D", "--num-shards", 2, "--prefix", "eval") == 1
    assert {p.name: p.read_bytes() for p in (tmp_path / "D").iterdir()} == before


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_chart_tar(tmp_path / "IN.tar", range(4))

    def fail_at_the_second(path: Path, samples: Any) -> Any:
        if path.name.endswith("1.tar"):
            raise OSError(28, "No space left on device")
        return writing.write_shard(path, samples)

    monkeypatch.setattr(sharding, "write_shard", fail_at_the_second)
    assert shard("--input", one, "--out-dir", tmp_path / "D", "--num-shards", 2) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert list((tmp_path / "D").iterdir()) == []


def test_a_tar_that_reads_back_otherwise_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [writing.Sample(key="a", payloads={"json": b"{}", "png": encode_png(draw_chart(1)[0])})]
    assert writing.write_shard(tmp_path / "good.tar", samples).samples == 1
    finish = writing._Writer.finish

    def flip(self: Any) -> None:
        finish(self)
        self._stream.seek(2 * 512 + 512 + 40)
        self._stream.write(b"?")

    monkeypatch.setattr(writing._Writer, "finish", flip)
    with pytest.raises(DataError, match="reads back other than it was written"):
        writing.write_shard(tmp_path / "bad.tar", samples)


def test_long_and_foreign_keys_survive(tmp_path: Path) -> None:
    keys = ["ü" * 60, "x" * 150, "deep/" * 40 + "y"]
    png = encode_png(draw_chart(1)[0])
    members = [m for key in keys for m in ((f"{key}.json", b'{"x": 1}'), (f"{key}.png", png))]
    one = write_tar(tmp_path / "IN.tar", members, format=tarfile.PAX_FORMAT)
    assert shard("--input", one, "--out-dir", tmp_path / "D", "--num-shards", 1) == 0
    assert members_of(tmp_path / "D")["train-000000.tar"] == members
    assert [row["__key__"] for row in all_rows(tmp_path / "D")] == keys


def test_copied_shards_keep_their_hashes_and_other_content_is_noticed(tmp_path: Path) -> None:
    """A copy has another time; the hash of the whole file decides."""
    one = write_chart_tar(tmp_path / "IN.tar", range(3))
    assert shard("--input", one, "--out-dir", tmp_path / "D", "--num-shards", 1) == 0
    shutil.copytree(tmp_path / "D", tmp_path / "copy", copy_function=shutil.copyfile)
    tar = tmp_path / "copy" / "train-000000.tar"
    os.utime(tar, ns=(10**18, 10**18))
    assert all_rows(tmp_path / "copy") == all_rows(tmp_path / "D")
    kept = json.loads(tar.with_name(tar.name + ".index.json").read_text())
    assert kept["mtime_ns"] == 10**18
    assert kept["sha256"] is not None
    content = bytearray(tar.read_bytes())
    content[512 + 3] ^= 1
    tar.write_bytes(content)
    with pytest.raises(DataError, match=r"is not the file that .* was written with"):
        all_rows(tmp_path / "copy")


def test_help_lists_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shard", "--help"]) == 0
    text = io.StringIO(capsys.readouterr().out).read()
    for flag in (
        "input",
        "out_dir",
        "num_shards",
        "samples_per_shard",
        "img_exts",
        "meta_ext",
        "shuffle",
        "seed",
        "prefix",
    ):
        assert f"--{flag}" in text
