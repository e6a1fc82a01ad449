"""Headers of tars: what is read, what is refused, and that nothing is passed over."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from support.tars import write_tar
from vlm_lora.data.formats.tar.members import Member, TarFaultError, read_members

LONG = "folder/" + "x" * 120


def members_of(content: bytes) -> list[Member]:
    return list(read_members(io.BytesIO(content), len(content)))


def with_type(path: Path, kind: bytes, name: str = "a.json") -> bytes:
    """Return a tar whose one member is of the given type."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    return path.read_bytes()


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_where_tarfile_says(tmp_path: Path, format: int) -> None:
    names = ["a.json", "äöü/b.JSON", "deep/" * 15 + "c.png", "empty.txt"]
    if format != tarfile.USTAR_FORMAT:
        names += [LONG, "ü" * 90]
    path = write_tar(tmp_path / "a.tar", [(name, name.encode() * 200) for name in names], format=format)
    with tarfile.open(path) as tar:
        expected = [Member(name=m.name, offset=m.offset_data, size=m.size) for m in tar.getmembers()]
    assert members_of(path.read_bytes()) == expected
    assert [member.name for member in expected] == names


def test_pax_records_of_other_things_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "made by us"}) as tar:
        info = tarfile.TarInfo("a.json")
        info.size, info.mtime, info.pax_headers = 2, 1.5, {"SCHILY.xattr.user.x": "1"}
        tar.addfile(info, io.BytesIO(b"{}"))
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    assert [member.name for member in members_of((tmp_path / "a.tar").read_bytes())] == ["a.json"]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.CHRTYPE, "character device"),
        (tarfile.BLKTYPE, "block device"),
        (tarfile.FIFOTYPE, "named pipe"),
        (tarfile.GNUTYPE_SPARSE, "sparse file"),
        (b"Z", "unknown type"),
    ],
)
def test_only_regular_files_are_read(tmp_path: Path, kind: bytes, said: str) -> None:
    with pytest.raises(TarFaultError, match=said):
        members_of(with_type(tmp_path / "a.tar", kind))
    assert len(members_of(with_type(tmp_path / "b.tar", tarfile.REGTYPE))) == 1


@pytest.mark.parametrize("name", ["/etc/a.json", "../a.json", "a/../../b.json", "a\\b.json"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TarFaultError, match="leads out"):
        members_of(write_tar(tmp_path / "a.tar", [(name, b"{}")]).read_bytes())


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as tar:
        tar.addfile(tarfile.TarInfo("ä.json"))
    with pytest.raises(TarFaultError, match="not UTF-8"):
        members_of((tmp_path / "a.tar").read_bytes())


def test_each_cut_of_the_end_is_found(tmp_path: Path) -> None:
    """A tar may end right behind its two blocks of zeros, and not one byte earlier."""
    whole = write_tar(tmp_path / "a.tar", [("a.json", b"{}")]).read_bytes()
    end = 512 + 512 + 2 * 512
    assert len(members_of(whole[:end])) == 1
    for cut in (end - 1, end - 512, end - 513, end - 1024, 1023, 1000, 513):
        with pytest.raises(TarFaultError, match="cut off"):
            members_of(whole[:cut])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"x" * 100, "no tar"),
        (b"<html>" + b"x" * 5000, "no tar"),
        (b"\x1f\x8b" + b"x" * 1000, r"gzip.*\.tar\.gz"),
    ],
)
def test_what_is_no_tar_says_so(content: bytes, said: str) -> None:
    with pytest.raises(TarFaultError, match=said):
        members_of(content)


def test_a_second_tar_behind_the_first_is_noticed(tmp_path: Path) -> None:
    """`cat a.tar b.tar`: tarfile reads the first and stops."""
    both = b"".join(write_tar(tmp_path / f"{n}.tar", [(f"{n}.json", b"{}")]).read_bytes() for n in "ab")
    with tarfile.open(fileobj=io.BytesIO(both)) as tar:
        assert len(tar.getmembers()) == 1, "what this guards against"
    with pytest.raises(TarFaultError, match="goes on behind"):
        members_of(both)


def test_extended_headers_have_a_cap_and_must_be_well_formed(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2 * 1024 * 1024
    with pytest.raises(TarFaultError, match="extended header of 2097152 bytes"):
        members_of(info.tobuf(tarfile.USTAR_FORMAT) + bytes(3 * 1024 * 1024))
    info.size = 12
    for payload in (b"9 path=a\nxxx", b"99 path=aaa\n", b"x", b"11 pathaaa\n0"):
        with pytest.raises(TarFaultError, match="extended header at byte 512"):
            members_of(info.tobuf(tarfile.USTAR_FORMAT) + payload.ljust(512, b"\0") + bytes(1024))


def test_a_size_that_is_negative_or_no_number_is_refused() -> None:
    info = tarfile.TarInfo("a.json")
    info.size = -512
    with pytest.raises(TarFaultError, match="negative size"):
        members_of(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    header = tarfile.TarInfo("x")
    record = b"11 size=-1\n"
    header.type, header.size = tarfile.XHDTYPE, len(record)
    after = tarfile.TarInfo("a.json").tobuf(tarfile.USTAR_FORMAT)
    with pytest.raises(TarFaultError, match="size of the member"):
        members_of(header.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + after + bytes(1024))
