"""Braces, ranges and lists in names, and that nothing is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.datasets import write_jsonl
from support.tars import write_chart_tar
from vlm_lora.data.sources.files import expand
from vlm_lora.data.sources.named import open_source
from vlm_lora.errors import DataError


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a.tar,b.tar", ["a.tar", "b.tar"]),
        ("a.tar, b.tar", ["a.tar", "b.tar"]),
        ("a.tar;b.tar; c.jsonl", ["a.tar", "b.tar", "c.jsonl"]),
        ("a-{0..1}.tar:b.tgz: c/*.TAR", ["a-0.tar", "a-1.tar", "b.tgz", "c/*.TAR"]),
        ("a.tar:b.tar,c.tar", ["a.tar", "b.tar", "c.tar"]),
        ("s3://bucket/a.tar", ["s3://bucket/a.tar"]),
        ("C:\\data\\a.tar", ["C:\\data\\a.tar"]),
        ("a.tar:b", ["a.tar:b"]),
        ("{a;b,c}", ["a;b", "c"]),
        ("s/{0..2}.tar", ["s/0.tar", "s/1.tar", "s/2.tar"]),
        ("{9..11}", ["9", "10", "11"]),
        ("{008..011}", ["008", "009", "010", "011"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}{1..2}", ["a1", "a2", "b1", "b2"]),
        ("{a{1..2},b}.tar", ["a1.tar", "a2.tar", "b.tar"]),
        ("x{a,{b,c}},y", ["xa", "xb", "xc", "y"]),
        ("{a,}b", ["ab", "b"]),
    ],
)
def test_expansion(typed: str, names: list[str]) -> None:
    assert expand(typed, flag="dataset_name") == names


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("{a", "no partner"),
        ("a}", "no partner"),
        ("}{", "no partner"),
        ("{a}", "neither a range"),
        ("{}", "neither a range"),
        ("a,,b", "empty"),
        ("a,", "empty"),
        ("a.tar;", "empty"),
        ("{0..99999999}", "more than 1000000 names"),
        ("pipe:touch x", "commands are not run"),
        ("a.tar,PIPE:touch x", "commands are not run"),
        (" pipe:touch x", "commands are not run"),
    ],
)
def test_what_cannot_be_expanded(typed: str, said: str) -> None:
    with pytest.raises(DataError, match=rf"--eval_tar.*{said}"):
        expand(typed, flag="eval_tar")


def test_a_pipe_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    with pytest.raises(DataError, match="commands are not run"):
        open_source(f"pipe:touch {marker}")
    assert not marker.exists()


def test_names_of_several_files(tmp_path: Path) -> None:
    for name, numbers in (("a0.tar", [0]), ("a1.tar", [1, 2]), ("b.tar", [3]), ("more/c.tar", [4])):
        write_chart_tar(tmp_path / name, numbers)

    def keys(typed: str) -> list[str]:
        rows = open_source(typed).splits["train"]
        return [rows[number]["__key__"] for number in range(len(rows))]

    assert keys(f"{tmp_path}/a{{0..1}}.tar") == ["000000", "000001", "000002"]
    assert keys(f"{tmp_path}/a*.tar,{tmp_path}/more") == ["000000", "000001", "000002", "000004"]
    assert keys(f"{tmp_path}/b.tar;{tmp_path}/a?.tar") == ["000003", "000000", "000001", "000002"]
    assert keys(f"{tmp_path}/a?.tar:{tmp_path}/b.tar") == ["000000", "000001", "000002", "000003"]
    assert keys(f"{tmp_path}/b.tar,{tmp_path}/a?.tar,{tmp_path}/b.tar") == ["000003", "000000", "000001", "000002"]
    with pytest.raises(DataError, match=r"a2\.tar: no file matches"):
        open_source(f"{tmp_path}/a{{0..2}}.tar")


def test_a_file_whose_name_has_commas_or_braces_is_itself(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a,{b}.jsonl", [{"query": "q", "label": "l"}])
    assert len(open_source(str(path)).splits["train"]) == 1
    write_jsonl(tmp_path / "x.jsonl", [{"query": "q", "label": "l"}] * 2)
    write_jsonl(tmp_path / "y.jsonl", [{"query": "q", "label": "l"}])
    assert len(open_source(f"{tmp_path}/{{x,y}}.jsonl").splits["train"]) == 3
