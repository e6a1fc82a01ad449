"""Every cache: what is damaged, old or of other content is made again and said; several may make it at once.

Each kind has its control: without its check, the flipped bit that is found here reaches the run.
"""

from __future__ import annotations

import ast
import gzip
import io
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from support.tars import write_chart_tar
from vlm_lora.batching import row_table
from vlm_lora.batching.prepared import entries, store
from vlm_lora.batching.prepared.store import TensorStore
from vlm_lora.batching.row_table import RowRecord, RowTableBuilder, SampleRecord
from vlm_lora.batching.shapes import RowShape
from vlm_lora.cli.main import main
from vlm_lora.data.cache_folder import CACHES, kept_files
from vlm_lora.data.conversation import Url
from vlm_lora.data.formats.tar import index_files, packed, table
from vlm_lora.data.formats.tar.index import build_index
from vlm_lora.data.formats.tar.opening import open_tars
from vlm_lora.data.images import urls
from vlm_lora.data.images.loader import ImageLimits, load_image
from vlm_lora.data.sources import arrow_caches
from vlm_lora.errors import DataError
from vlm_lora.model import hashing
from vlm_lora.preflight.table_store import TableStore

KEY, OTHER = "a" * 32, "b" * 32
ROOT = Path(__file__).parents[3]
FOLDERS = ("cache_folder", "cache_place")
"""The functions that return a folder of the cache."""


def flip(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@dataclass(kw_only=True)
class Kind:
    """One file of a cache."""

    use: Callable[..., Any]
    """Reads what is kept of one of two contents, as a new process would, and makes it where need be."""
    file: Callable[[str], Path]
    """Where it lies, once it was made."""
    spot: Callable[[bytes], int]
    """A byte of its content of which a flipped bit changes what is read."""
    older: Callable[[bytes], bytes]
    """The same file as another version would have written it."""
    unchecked: Callable[[pytest.MonkeyPatch], None]
    """Takes its check away, before anything is written."""
    made: list[str] = field(default_factory=list)
    """What was made, in this process."""
    silent: tuple[str, ...] = ("missing",)
    """Damages that nothing tells from something that is not there yet."""


def checks(folder: Path, patch: pytest.MonkeyPatch) -> Kind:
    tables = TableStore.__new__(TableStore)
    tables._folder = folder / "cache" / "checks"
    made: list[str] = []

    def use(which: str = KEY) -> Any:
        found = tables.load(which)
        if found is None:
            made.append(which)
            builder = RowTableBuilder(name="data", layout="question_answer")
            for row in range(3):
                shape = RowShape(media=(), length=10 + row, supervised=7 if which == KEY else 9)
                builder.add(RowRecord(number=row, samples=(SampleRecord(shape=shape),)))
            tables.store(which, builder.table())
            found = tables.load(which)
        assert found is not None
        return [found.shape(row) for row in range(3)]

    class Same:
        """A hash that is always the same."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.update = lambda piece: None
            self.hexdigest = lambda: "0" * 32

    return Kind(
        use=use,
        file=lambda which: tables._folder / f"{which}.rows",
        spot=lambda content: content.rindex(b"\x07\0\0\0"),
        older=lambda content: content.replace(b"table 2", b"table 1", 1),
        unchecked=lambda patch: patch.setattr(row_table, "blake2b", Same),
        made=made,
    )


def tensors(folder: Path, name: str, suffix: str) -> Kind:
    made: list[str] = []
    segments: dict[str, str] = {}
    place = folder / "cache" / name

    def use(which: str = KEY) -> Any:
        kept = TensorStore(place)
        found = kept.get(which)
        if found is None:
            made.append(which)
            before = set(place.glob("*.tensors"))
            kept.put(which, {"x": torch.full((100,), 7 if which == KEY else 9)})
            kept.close()
            segments[which] = next(iter(set(place.glob("*.tensors")) - before)).stem
            found = kept.get(which)
        kept.say_damage()
        assert found is not None
        return found["x"].tolist()

    def older(content: bytes) -> bytes:
        if suffix == ".tensors":
            return content[:-1]  # it has no version of its own
        (line,) = content.splitlines()
        text = json.dumps([0, *json.loads(line[9:])[1:]], separators=(",", ":")).encode()
        return b"%08x %s\n" % (zlib.crc32(text), text)

    def unchecked(patch: pytest.MonkeyPatch) -> None:
        class Zlib:
            crc32 = staticmethod(lambda *args: 0)

        patch.setattr(store, "zlib", Zlib)
        patch.setattr(entries, "zlib", Zlib)

    return Kind(
        use=use,
        file=lambda which: place / f"{segments[which]}{suffix}",
        spot=lambda content: 0 if suffix == ".tensors" else content.index(b"[100]") + 3,
        older=older,
        unchecked=unchecked,
        made=made,
        # An index that ends early is one that had fewer entries, and another's has others.
        silent=("missing", "empty", "half", "another's") if suffix == ".index" else (),
    )


def sha_of_nothing(patch: pytest.MonkeyPatch, module: Any) -> None:
    class Same:
        def __init__(self, *args: Any) -> None:
            self.digest_size = 32
            self.update = lambda piece: None
            self.hexdigest = lambda: "0" * 64

    class Hashlib:
        sha256 = Same

    patch.setattr(module, "hashlib", Hashlib)


def tar_index(folder: Path, patch: pytest.MonkeyPatch) -> Kind:
    made: list[str] = []
    paths = {KEY: folder / "a.tar", OTHER: folder / "b.tar"}
    write_chart_tar(paths[KEY], [1, 2])
    write_chart_tar(paths[OTHER], [3])

    def counting(stream: Any, size: int, name: str) -> Any:
        made.append(name)
        return build_index(stream, size, name)

    patch.setattr(index_files, "build_index", counting)

    def use(which: str = KEY) -> Any:
        rows = open_tars([paths[which]])
        return [rows[number]["__key__"] for number in range(len(rows))]

    def older(content: bytes) -> bytes:
        record = json.loads(content)
        record.pop("checksum")
        return index_files.sealed({**record, "version": 1})

    return Kind(
        use=use,
        file=lambda which: index_files.beside(paths[which]),
        spot=lambda content: content.index(b'"000001"') + 6,
        older=older,
        unchecked=lambda patch: sha_of_nothing(patch, index_files),
        made=made,
    )


def unpacked(folder: Path, patch: pytest.MonkeyPatch, *, index: bool) -> Kind:
    made: list[str] = []
    paths = {KEY: folder / "a.tar.gz", OTHER: folder / "b.tar.gz"}
    places: dict[str, Path] = {}
    for which, path in paths.items():
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w") as tar:
            answer = "seven" if which == KEY else "nine"
            row = {"question": "How many?", "answer": answer}
            for name, content in (("1.json", json.dumps(row).encode()), ("1.png", b"no image")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        path.write_bytes(gzip.compress(plain.getvalue()))
        os.utime(path, (10**9, 10**9))
    unpack = packed._unpack

    def counting(path: Path, plain: Path, **options: Any) -> None:
        made.append(path.name)
        unpack(path, plain, **options)

    patch.setattr(packed, "_unpack", counting)

    def use(which: str = KEY) -> Any:
        plain, kept = packed.unpack(paths[which])
        places[which] = index_files.beside(plain) if index else plain
        rows = table.TarTable.of(plain, kept, name=str(paths[which]), plural=False)
        return [(rows.key(number), rows[number]["answer"]) for number in range(len(rows))]

    def older(content: bytes) -> bytes:
        if not index:
            return content[:-1]  # it has no version of its own
        record = json.loads(content)
        record.pop("checksum")
        return index_files.sealed({**record, "version": 1})

    def trusting(plain: Path) -> Any:
        kept = index_files.load_index(index_files.beside(plain))
        if kept is None:
            return None
        with plain.open("rb") as stream:
            return replace(kept, stamp=index_files.read_stamp(stream))

    def unchecked(patch: pytest.MonkeyPatch) -> None:
        sha_of_nothing(patch, index_files)
        patch.setattr(packed, "_unpacked_before", trusting)

        class Zlib:
            crc32 = staticmethod(lambda *args: 0)

        patch.setattr("vlm_lora.data.formats.tar.index.zlib", Zlib)
        patch.setattr(table, "zlib", Zlib)

    return Kind(
        use=use,
        file=lambda which: places[which],
        spot=lambda content: content.index(b'"keys":["1"') + 9 if index else content.index(b"seven"),
        older=older,
        unchecked=unchecked,
        made=made,
        silent=(),
    )


def images(folder: Path, patch: pytest.MonkeyPatch) -> Kind:
    made: list[str] = []

    class Server(urls.Fetcher):
        def fetch(self, url: Url) -> bytes:
            made.append(url.text)
            stream = io.BytesIO()
            Image.new("RGB", (9, 9), (7, 7, 7) if url.text.endswith(KEY) else (9, 9, 9)).save(stream, "BMP")
            return stream.getvalue()

    def url(which: str) -> Url:
        return Url(text=f"https://pictures.invalid/{which}")

    return Kind(
        use=lambda which=KEY: load_image(url(which), limits=ImageLimits(), fetcher=Server()).tobytes(),
        file=lambda which: urls.kept_file(url(which)),
        spot=lambda content: len(content) - 20,
        older=lambda content: content.replace(b"image 1", b"image 0", 1),
        unchecked=lambda patch: patch.setattr(urls, "_line", lambda url, encoded: b"a line\n"),
        made=made,
    )


def hashes(folder: Path, patch: pytest.MonkeyPatch) -> Kind:
    made: list[str] = []
    patch.setattr(hashing, "LARGE", 1)
    paths = {KEY: folder / "a.safetensors", OTHER: folder / "b.safetensors"}
    for which, path in paths.items():
        path.write_text(f"weights {which}")
    sha256_of = hashing.sha256_of

    def counting(path: Path) -> str:
        made.append(path.name)
        return sha256_of(path)

    patch.setattr(hashing, "sha256_of", counting)
    one = folder / "cache" / "hashes" / "files.json"

    def use(which: str = KEY) -> str:
        hashing._known.clear()
        return hashing.known_hash(paths[which])

    def older(content: bytes) -> bytes:
        files = json.loads(content)["files"]
        patch.setattr(hashing, "FORMAT", 0)
        checksum = hashing._checksum(files)
        patch.setattr(hashing, "FORMAT", 1)
        return json.dumps({"checksum": checksum, "files": files}).encode()

    return Kind(
        use=use,
        file=lambda which: one,
        spot=lambda content: content.index(sha256_of(paths[KEY]).encode()),
        older=older,
        unchecked=lambda patch: patch.setattr(hashing, "_checksum", lambda files: ""),
        made=made,
    )


def arrow(folder: Path, patch: pytest.MonkeyPatch) -> Kind:
    made: list[str] = []
    paths = {KEY: folder / "a.arrow", OTHER: folder / "b.arrow"}
    for which, path in paths.items():
        path.write_text(f"rows {which}")
    sha256 = arrow_caches._sha256

    def counting(path: Path) -> str:
        made.append(path.name)
        return sha256(path)

    patch.setattr(arrow_caches, "_sha256", counting)

    def use(which: str = KEY) -> list[Path]:
        return arrow_caches.damaged([paths[which]])

    def older(content: bytes) -> bytes:
        record = json.loads(content)
        record.pop("checksum")
        record["format"] = 0
        return json.dumps({**record, "checksum": arrow_caches._checksum(record)}).encode()

    def unchecked(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(arrow_caches, "_checksum", lambda content: "")
        patch.setattr(arrow_caches, "_sha256", lambda path: "not looked at")

    return Kind(
        use=use,
        file=lambda which: folder / "cache" / "arrow" / arrow_caches._place(paths[which]),
        spot=lambda content: content.index(str((folder / "a.arrow").stat().st_size).encode(), content.index(b"stamp")),
        older=older,
        unchecked=unchecked,
        made=made,
        silent=("missing", "version"),
    )


KINDS: dict[str, Callable[[Path, pytest.MonkeyPatch], Kind]] = {
    "checks": checks,
    "prepared images": lambda folder, patch: tensors(folder, "prepared_images", ".tensors"),
    "index of prepared images": lambda folder, patch: tensors(folder, "prepared_images", ".index"),
    "vision features": lambda folder, patch: tensors(folder, "vision_features", ".tensors"),
    "index of a tar": tar_index,
    "unpacked tar": lambda folder, patch: unpacked(folder, patch, index=False),
    "index of an unpacked tar": lambda folder, patch: unpacked(folder, patch, index=True),
    "image behind a URL": images,
    "hashes": hashes,
    "hash of an Arrow file": arrow,
}
ONE_FOR_ALL = ("hashes",)
"""Kinds whose entries lie in one file."""


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kind:
    monkeypatch.setenv("VLM_LORA_CACHE", str(tmp_path / "cache"))
    return KINDS[request.param](tmp_path, monkeypatch)


def test_what_is_damaged_is_made_again_and_said(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    expected, other = kind.use(), kind.use(OTHER)
    count = len(kind.made)
    assert (kind.use(), len(kind.made)) == (expected, count), "the control: what is whole is used"
    damages: dict[str, Callable[[bytes], bytes]] = {
        "missing": lambda whole: b"",
        "empty": lambda whole: b"",
        "half": lambda whole: whole[: len(whole) // 2],
        "one bit": lambda whole: flip(whole, kind.spot(whole)),
        "one bit in its middle": lambda whole: flip(whole, len(whole) // 2),
        "version": kind.older,
    }
    if kind.file(KEY) != kind.file(OTHER):
        damages["another's"] = lambda whole: kind.file(OTHER).read_bytes()
    for name, damage in damages.items():
        file = kind.file(KEY)
        file.write_bytes(damage(file.read_bytes()))
        if name == "missing":
            file.unlink()
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert kind.use() == expected, name
        assert len(kind.made) > count, name
        assert name in kind.silent or re.search(r"again|damaged", caplog.text), (name, caplog.text)
        count = len(kind.made)
        assert (kind.use(), len(kind.made)) == (expected, count), f"{name}: it was kept again"
    assert kind.use(OTHER) == other


def test_without_the_check_the_flipped_bit_would_be_used(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    kind.unchecked(monkeypatch)
    expected = kind.use()
    count = len(kind.made)
    whole = kind.file(KEY).read_bytes()
    kind.file(KEY).write_bytes(flip(whole, kind.spot(whole)))
    assert kind.use() != expected
    assert len(kind.made) == count


def in_children(count: int, act: Callable[[], None]) -> list[int]:
    """Run it in forks that begin at the same time; return their exit codes."""
    context = multiprocessing.get_context("fork")
    together = context.Barrier(count)

    def begin() -> None:
        together.wait(60)
        act()

    children = [context.Process(target=begin) for _ in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    return [child.exitcode or 0 for child in children]


def test_several_processes_make_it_at_once(kind: Kind, tmp_path: Path) -> None:
    expected = kind.use(OTHER)
    shutil.rmtree(tmp_path / "cache")
    for kept in tmp_path.glob("*.index.json"):
        kept.unlink()

    def act() -> None:
        assert kind.use(OTHER) == expected

    assert in_children(3, act) == [0, 0, 0]
    kind.made.clear()
    assert kind.use(OTHER) == expected
    assert kind.made == [], "what they made is used"
    assert not list(tmp_path.rglob("*.partial"))


def test_a_kill_while_it_is_written_leaves_nothing_half(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first write that reaches the disk, and before a file gets its name."""

    def die(*args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    for module, name in ((os, "fsync"), (Path, "replace"), (store, "_write_whole")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, die)
            codes = in_children(1, kind.use)
        assert codes in ([0], [-signal.SIGKILL])
        if codes == [0]:  # a store of tensors renames nothing
            assert list(tmp_path.rglob("*.tensors")) or module is store
    expected = kind.use()
    kind.made.clear()
    assert kind.use() == expected
    assert kind.made == []
    assert main(["cache", "--clear", "all"]) == 0
    assert not list((tmp_path / "cache").rglob("*.*")), "what was left unfinished is removed, too"


def test_a_bit_that_time_and_size_do_not_show_in_an_unpacked_tar_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a disk flips it: each member is held against its CRC-32 when it is read."""
    monkeypatch.setenv("VLM_LORA_CACHE", str(tmp_path / "cache"))
    one = unpacked(tmp_path, monkeypatch, index=False)
    assert one.use() == [("1", "seven")]
    file, whole = one.file(KEY), one.file(KEY).read_bytes()
    status, kept = file.stat(), index_files.load_index(index_files.beside(file))
    file.write_bytes(flip(whole, one.spot(whole)))
    os.utime(file, ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert kept is not None
    rows = table.TarTable.of(file, kept, name="a.tar.gz", plural=False)
    with pytest.raises(DataError, match=rf"the member .json is damaged.*Delete {file}, which is unpacked again then"):
        rows[0]
    file.write_bytes(whole)
    os.utime(file, ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert rows[0]["answer"] == "seven", "the control"


def test_clearing_leaves_what_is_not_of_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`VLM_LORA_CACHE` may be a folder with other things in it, such as a user's own images."""
    monkeypatch.setenv("VLM_LORA_CACHE", str(tmp_path / "cache"))
    kinds = [images(tmp_path, monkeypatch), checks(tmp_path, monkeypatch)]
    for one in kinds:
        one.use()
    (tmp_path / "cache" / "images" / "cat.png").write_text("mine")
    assert main(["cache", "--list"]) == 0
    assert re.search(r"^images +1 files +\d+ bytes .*/cache/images: ", capsys.readouterr().out, re.MULTILINE)
    assert main(["cache", "--clear", "images"]) == 0
    assert "images: 453 bytes removed." in capsys.readouterr().out
    assert [file.name for file in (tmp_path / "cache" / "images").iterdir()] == ["cat.png"]
    assert len(kept_files("checks")) == 1, "the control: another one"
    assert main(["cache", "--clear", "image"]) == 1
    assert "--clear image: no such cache; there are all, prepared_images" in capsys.readouterr().err
    assert main(["cache", "--list", "--dataset_name", "x"]) == 1
    assert "--list and --clear stand alone, and --dataset_name is for a run" in capsys.readouterr().err
    assert main(["cache", "--clear", "all"]) == 0
    assert os.listdir(tmp_path / "cache") == ["images"]  # noqa: PTH208


def test_every_cache_is_listed() -> None:
    """What the product's code names when it asks for a folder of the cache."""
    named: set[Any] = set()
    for file in (ROOT / "vlm_lora").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        texts = {
            target.id: node.value.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        words = [call.args[0] for call in calls if ast.unparse(call.func) in FOLDERS and call.args]
        named |= {word.value if isinstance(word, ast.Constant) else texts.get(ast.unparse(word)) for word in words}
    assert named - {None, "environments"} == set(CACHES)  # packages for another program are no cache
    page = (ROOT / "docs" / "caches.md").read_text(encoding="utf-8")
    assert [name for name in CACHES if f"| `{name}` |" not in page] == []
