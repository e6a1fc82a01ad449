"""Data whose file names are no UTF-8, as Linux allows, through check, training and preview to all that they write."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.rows import write_uneven_rows
from support.runs import run
from vlm_lora.cli.main import EXIT_INTERNAL, EXIT_USER, main

ROWS = 8
BAD, LONG = 3, 5


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write eight rows in a folder of such a name, one bad and one too long."""
    folder = write_uneven_rows(Path(os.fsdecode(os.fsencode(tmp_path) + b"/donn\xe9es")), rows=ROWS, validation=2)
    with pytest.raises(UnicodeEncodeError):
        str(folder).encode()
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    lines[BAD]["answer"] = None
    lines[LONG]["question"] = "so many words " * 40
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def test_a_run_writes_the_names_so_that_they_are_read_back(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    policies = {"on_bad_sample": "skip", "max_bad_fraction": 0.5, "on_overflow": "drop", "max_length": 100}
    flags = {"do_train": True, "do_eval": True, "max_steps": 1, "predict_with_generate": True}
    run(model_folder("gemma3"), data, output, **flags, **policies)
    file = str(data / "train.jsonl")
    quarantined = [json.loads(line) for line in (output / "quarantine.jsonl").read_text("utf-8").splitlines()]
    assert {(row["file"], row["row"]) for row in quarantined} == {(file, BAD)}, "the long row is listed next to"
    overlong = json.loads((output / "overlong_rows.json").read_text("utf-8"))
    assert [row["row"] for row in overlong["train"]] == [f"{file} row {LONG}"]
    assert file in {row["file"] for row in json.loads((output / "data_report.json").read_text("utf-8"))["bad"]}
    answers = [json.loads(line) for line in (output / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert answers[1]["source"] == f"{data / 'validation.jsonl'} row 1 (line 2)"
    for path in output.rglob("*"):
        if path.suffix in {".json", ".jsonl", ".md", ".yaml", ".html", ".txt"}:
            path.read_text("utf-8")


@pytest.mark.parametrize("escaping", [True, False])
def test_what_is_printed_takes_the_names_too(
    model_folder: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    escaping: bool,
) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="utf-8", errors="strict"))
    if not escaping:
        monkeypatch.setattr("vlm_lora.cli.main.let_stdout_escape", lambda: None)
    flags = ["--model_name_or_path", str(model_folder("gemma3")), "--dataset_name", str(data), "--use_cpu"]
    html = tmp_path / "page.html"
    assert main(["check", *flags, "--html", str(html)]) == (EXIT_USER if escaping else EXIT_INTERNAL)
    sys.stdout.flush()
    if escaping:
        assert b"donn\\udce9es" in printed.getvalue()
        assert "donn[U+DCE9]es" in html.read_text("utf-8")
        assert main(["preview", *flags, "--rows", "1", "--json"]) == 0
        assert main(["preview", *flags, "--rows", "1", "--html", str(html)]) == 0
