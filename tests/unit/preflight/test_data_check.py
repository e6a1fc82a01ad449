"""`vlm-lora check`: ten planted faults of ten kinds are found by file, row, reason and cure, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.datasets import write_jsonl
from vlm_lora.cli.main import main

ROWS = 300
FAULTS: dict[int, tuple[str, str]] = {
    7: ("picture", "cannot be opened"),
    40: ("picture", "not a readable image"),
    77: ("picture", "the image is empty"),
    99: ("picture", "--image_root"),
    120: ("picture", "URL"),
    151: ("picture", "pixels"),
    180: ("too long", "Raise --max_length"),
    222: ("row", "There is no value for the response"),
    260: ("row", "true or false"),
    299: ("row", "The list of accepted answers in 'answer' is empty"),
}
"""By row: kind, and words of the reason."""


def write_rows(folder: Path, *, faulty: bool) -> Path:
    """Write 300 rows over 20 small images, with the ten faults or without."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(20):
        pixels = generator.integers(0, 256, (16, 16 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    (folder / "empty.png").write_bytes(b"")
    Image.new("L", (900, 900)).save(folder / "large.png")
    Image.new("L", (8, 8)).save(folder.parent / "outside.png")
    rows: list[dict[str, Any]] = [
        {"image": f"{row % 20}.png", "question": f"What is {row}?", "answer": ["red"]} for row in range(ROWS)
    ]
    changes: dict[int, dict[str, Any]] = {
        7: {"image": "none.png"},
        40: {"image": "broken.png"},
        77: {"image": "empty.png"},
        99: {"image": "../outside.png"},
        120: {"image": "http://example.com/a.png"},
        151: {"image": "large.png"},
        180: {"question": "why " * 3000},
        222: {"answer": None},
        260: {"answer": [True]},
        299: {"answer": []},
    }
    assert changes.keys() == FAULTS.keys()
    for row, change in changes.items() if faulty else ():
        rows[row] = {**rows[row], **change}
    write_jsonl(folder / "train.jsonl", rows)
    return folder


def check(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, dict[str, Any], list[str]]:
    """Return exit code, report and error lines of `vlm-lora check --json`."""
    capsys.readouterr()
    flags = ["--model_name_or_path", str(model), "--dataset_name", str(data), "--use_cpu"]
    code = main(["check", *flags, "--max_image_pixels", "500000", "--json", *words])
    printed = capsys.readouterr()
    report: dict[str, Any] = json.loads(printed.out)
    return code, report, [line for line in printed.err.splitlines() if line.startswith("error: ")]


@pytest.fixture
def model(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("gemma3")


@pytest.mark.parametrize("workers", [0, 2])
def test_ten_faults_of_ten_kinds_are_all_that_is_found(
    workers: int, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "data", faulty=True)
    whole = ("--validation_fraction", "0", "--do_eval", "false", "--workers", str(workers))
    code, report, errors = check(model, data, capsys, *whole)
    assert code == 1
    assert [row["row"] for row in report["bad"]] == list(FAULTS)
    for row, (kind, words) in zip(report["bad"], FAULTS.values(), strict=True):
        assert row["file"] == str(data / "train.jsonl")
        assert row["kind"] == kind
        assert words in row["reason"]
        assert row["cure"].endswith("--on_overflow." if kind == "too long" else "take the row out.")
    assert (report["rows"], report["bad_rows"], report["ok"]) == (ROWS, 10, False)
    assert len(errors) == 1
    assert errors[0].startswith(
        f"error: 10 of 300 rows cannot be used, the first: {data / 'train.jsonl'} row 7 (line 8): "
    )


PICTURE = {"type": "image"}
ANSWER = {"role": "assistant", "content": "red"}
CHATS: dict[str, tuple[list[Any] | str | None, str, str]] = {
    "fine": ([{"role": "user", "content": [PICTURE, "What?"]}, ANSWER], "", ""),
    "unknown role": ([{"role": "robot\x1b[2J\ud800", "content": "x"}, ANSWER], "row", r"role 'robot\x1b[2J\ud800'"),
    "no content": ([{"role": "user", "content": None}, ANSWER], "row", "has no content"),
    "open end": ([ANSWER, {"role": "user", "content": "And?"}], "row", "The last turn is the user's"),
    "no answer": ([{"role": "user", "content": "x"}], "row", "No assistant turn"),
    "sound": ([{"role": "user", "content": [{"type": "audio", "audio": "a"}]}, ANSWER], "row", "'audio'"),
    "too many places": ([{"role": "user", "content": [PICTURE, PICTURE]}, ANSWER], "row", "2 places for images"),
    "drawn answer": ([{"role": "user", "content": "x"}, {"role": "assistant", "content": [PICTURE]}], "row", "image"),
    "no chat": ("What?", "row", "no list of turns"),
    "empty chat": ([], "row", "is empty"),
    "two users": ([{"role": "user", "content": "x"}] * 2 + [ANSWER], "labels", "alternate"),
}


@pytest.mark.parametrize("skipped", [False, True])
def test_ten_kinds_of_broken_chats(
    skipped: bool, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (16, 16)).save(folder / "a.png")
    write_jsonl(folder / "train.jsonl", [])
    lines = [json.dumps({"image": "a.png", "messages": chat}) + "\n" for chat, _, _ in CHATS.values()]
    (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    policy = ["--on_bad_sample", "skip", "--max_bad_fraction", "0.95"] if skipped else []
    words = ("--validation_fraction", "0", "--do_eval", "false", *policy)
    code, report, errors = check(model, folder, capsys, *words)
    assert (code, len(errors)) == ((0, 0) if skipped else (1, 1)), "with skip, training would go on"
    assert [row["row"] for row in report["bad"]] == list(range(1, 11))
    for row, (_, kind, words_of_reason) in zip(report["bad"], list(CHATS.values())[1:], strict=True):
        assert row["kind"] == kind
        assert words_of_reason in row["reason"]
        assert row["reason"].isprintable(), "one line, and no command to the terminal"


def test_file_that_cannot_be_read_is_named_with_its_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"question": "What?", "answer": "Red."}\n{"question": "Wh', encoding="utf-8")
    assert main(["check", "--model_name_or_path", str(model), "--dataset_name", str(path), "--use_cpu"]) == 1
    assert f"error: {path} line 2: not JSON" in capsys.readouterr().err


def test_nothing_is_found_where_nothing_is_wrong(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "data", faulty=False)
    code, report, errors = check(model, data, capsys)
    assert (code, report["ok"], report["bad"], errors) == (0, True, [], [])
    assert {name: split["rows"] for name, split in report["splits"].items()} == {"train": 285, "validation": 15}


def test_figures_are_those_of_the_rows(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Counted again from what `preview` says of each row, which takes another way."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = []
    for row in range(12):
        Image.new("RGB", (20 + row, 30), (row * 20, 0, 0)).save(folder / f"{row}.png")
        rows.append({"image": f"{row}.png", "question": "why " * (row % 5), "answer": "red " * (1 + row % 3)})
    rows[9] = rows[3]
    rows[10] = rows[3]
    write_jsonl(folder / "train.jsonl", rows)
    flags = ["--model_name_or_path", str(model), "--dataset_name", str(folder), "--use_cpu"]
    assert main(["preview", *flags, "--rows", "12", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    code, report, _ = check(model, folder, capsys, "--do_eval", "false", "--validation_fraction", "0")
    split = report["splits"]["train"]
    assert code == 0
    for name, key in (("tokens", "tokens"), ("supervised", "supervised_tokens")):
        values = [row[key] for row in shown]
        assert (split[name]["least"], split[name]["most"], split[name]["total"]) == (
            min(values),
            max(values),
            sum(values),
        )
        assert sum(split[name]["counts"]) == 12
        edges = split[name]["edges"]
        bins = pairwise(edges)
        assert [sum(low <= value < high for value in values) for low, high in bins] == split[name]["counts"]
    assert split["supervised_share"] == pytest.approx(split["supervised"]["total"] / split["tokens"]["total"])
    assert (split["widths"]["least"], split["widths"]["most"], split["heights"]["most"]) == (20, 31, 30)
    assert split["repeated"] == 2
    assert [[row["row"] for row in group] for group in split["repeats"]] == [[3, 9, 10]]
    assert split["largest"][0]["row"] == 11
    longest = max(range(12), key=lambda row: (shown[row]["tokens"], -row))
    assert (split["longest"][0]["row"], split["longest"][0]["figure"]) == (
        longest,
        f"{shown[longest]['tokens']} tokens",
    )


def test_rows_that_are_trained_on_and_measured_are_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    rows = [{"question": f"What is {row}?", "answer": "red"} for row in range(6)]
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "validation.jsonl", [{"question": "Why?", "answer": "red"}, rows[4]])
    _, report, _ = check(model, folder, capsys)
    assert report["leaked"] == 1
    assert [(Path(row["file"]).name, row["row"]) for row in report["leaks"]] == [("validation.jsonl", 1)]


def test_empty_answers_are_counted_and_the_first_are_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are good rows: an empty answer can be meant."""
    turns = [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": " \n"},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "red"},
    ]
    said = [*turns[:1], {"role": "assistant", "content": "blue"}, *turns[2:]]
    folder = tmp_path / "data"
    write_jsonl(folder / "train.jsonl", [{"messages": said}, {"messages": turns}, {"messages": said}])
    write_jsonl(folder / "validation.jsonl", [{"messages": said}])
    code, report, _ = check(model, folder, capsys)
    assert (code, report["bad"]) == (0, [])
    assert {name: split["unanswered"] for name, split in report["splits"].items()} == {"train": 1, "validation": 0}
    first = [(Path(row["file"]).name, row["row"]) for row in report["splits"]["train"]["unanswered_rows"]]
    assert first == [("train.jsonl", 1)]
    html = tmp_path / "page.html"
    flags = ["--model_name_or_path", str(model), "--dataset_name", str(folder), "--use_cpu"]
    assert main(["check", *flags, "--html", str(html)]) == 0
    assert (
        capsys.readouterr().out.count(f"empty answers: 1 row teaches the model to say nothing, such as {folder}") == 1
    )
    assert html.read_text(encoding="utf-8").count("1 row has an empty answer") == 1
    run = ["--output_dir", str(tmp_path / "out"), "--max_steps", "1", "--do_eval", "--disable_tqdm"]
    assert main(["train", *flags, *run]) == 0
    noted = [line for line in capsys.readouterr().err.splitlines() if "an empty answer" in line]
    assert noted == ["Masks: 12.2% of 147 tokens are supervised (the answers); 1 row has an empty answer"]


def test_terminal_says_the_same_as_json(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "data", faulty=True)
    words = ("--validation_fraction", "0", "--do_eval", "false")
    _, report, _ = check(model, data, capsys, *words)
    flags = ["--model_name_or_path", str(model), "--dataset_name", str(data), "--use_cpu"]
    assert main(["check", *flags, "--max_image_pixels", "500000", *words]) == 1
    shown = capsys.readouterr().out
    split = report["splits"]["train"]
    assert "train: 300 rows, 10 bad" in shown
    titles = {
        "tokens a row": "tokens",
        "supervised tokens": "supervised",
        "images a row": "pictures",
        "image width": "widths",
        "image height": "heights",
    }
    for title, key in titles.items():
        printed = re.search(rf"^{title} +(\d+) +(\d+) +(\d+) +(\d+) +(\d+)", shown, re.MULTILINE)
        assert printed is not None
        figures = [split[key][name] for name in ("least", "median", "high", "most", "total")]
        assert [int(number) for number in printed.groups()] == figures
    assert f"{split['supervised_share']:.1%} of the tokens" in shown
    for row in report["bad"]:
        assert f"{row['file']} row {row['row']} (line {row['line']}): {row['reason']}" in shown
    assert "Rows count from 0." in shown


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--workers", "-1"], "--workers -1"),
        (["--html", "/nowhere/page.html"], "--html /nowhere/page.html"),
        (["--max_bad_fraction", "2"], "--max_bad_fraction 2"),
        (["--on_bad_sample", "replace"], "allowed are error, skip"),
        (["--on_bad_sample", "skip", "--skip_check"], "--on_bad_sample skip needs the check"),
    ],
)
def test_wrong_flags(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *words]) == 1
    assert named in capsys.readouterr().err
