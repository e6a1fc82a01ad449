"""A run on a terminal and in a file: rows of the screen before the first step, whole lines, what is said at the end."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pty
import struct
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from support.rows import write_uneven_rows
from support.runs import script_flags
from support.screen import Screen
from vlm_lora.cli.main import main

STEPS = 4
FLAGS = {
    "max_steps": STEPS,
    "logging_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "disable_tqdm": False,
    "log_level": "passive",
}
MOST = 12
"""Rows of a screen before the first step."""
NAMED = ("Data", "bad;", "data_report.json", "Masks", "supervised", "Trainable", "Device", "Precision", "Steps")


def on_terminal(words: list[str], columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the command line with a terminal of so many columns as its stdout and stderr; return what it wrote there."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    written = bytearray()

    def read() -> None:
        while True:
            try:
                written.extend(os.read(ours, 4096))
            except OSError:  # the other end is closed
                return

    reader = threading.Thread(target=read)
    reader.start()
    with open(its, "w", encoding="utf-8", buffering=1) as terminal, monkeypatch.context() as patch:  # noqa: PTH123
        patch.setenv("TERM", "xterm")
        for name in ("CI", "COLUMNS", "RANK", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK"):
            patch.delenv(name, raising=False)
        patch.setattr(sys, "stderr", terminal)
        patch.setattr(sys, "stdout", terminal)
        code = main(words)
    reader.join(timeout=60)
    os.close(ours)
    text = written.decode()
    assert code == 0, text
    return text


def rows_before_the_first_step(text: str, columns: int) -> list[str]:
    """Return what stands on the screen above the live line when that first shows."""
    before, live, _ = text.partition("step 0 of ")
    if not live:
        pytest.fail(f"no live line: {text}")
    screen = Screen(columns)
    screen.feed(before)
    return screen.rows[:-1]


@pytest.fixture
def words(model_folder: Callable[[str], Path], tmp_path: Path) -> list[str]:
    data = write_uneven_rows(tmp_path / "data", rows=4, validation=2)
    return ["train", *script_flags(model_folder("gemma3"), data, tmp_path / "out", **FLAGS)]


def test_a_run_on_a_terminal(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = on_terminal(words, 80, monkeypatch)
    start = rows_before_the_first_step(text, 80)
    assert len(start) <= MOST, start
    said = "".join(row.strip() for row in start)  # a long path is cut anywhere, and goes on indented in the next row
    assert [name for name in NAMED if name not in said] == []
    screen = Screen(80)
    screen.feed(text)
    torn = [row for row in screen.rows if " of 4" in row]
    assert torn == [], "the live line is gone, and stands in no other line"
    table = next(number for number, row in enumerate(screen.rows) if row.split()[:3] == ["step", "train", "loss"])
    assert [row.split()[0] for row in screen.rows[table + 1 : table + 3]] == ["2", "4"]
    end = "\n".join(screen.rows[table + 3 :])
    assert "Trained 4 steps" in end
    assert "The adapter is in" in end
    assert "The best checkpoint that is kept is" in end
    assert "Serving: vLLM" in end
    assert "vlm-lora ask --model_name_or_path" in end
    assert "{" not in end, "no JSON"
    # The control: with all that the program has to say, the start is no short one.
    chatty = ["info" if word == "passive" else word for word in words]
    again = on_terminal([*chatty, "--overwrite_output_dir"], 80, monkeypatch)
    before = rows_before_the_first_step(again, 80)
    assert len(before) > MOST
    assert any(row.startswith("Serving: vLLM") for row in before)


def test_in_a_file_there_are_plain_lines(words: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(words) == 0
    said = capfd.readouterr()
    assert "\r" not in said.err
    assert "\x1b" not in said.err
    lines = said.err.splitlines()
    assert [line.partition(":")[0] for line in lines if line.startswith(("step ", "evaluated at"))] == [
        *("step 2 of 4", "evaluated at step 2", "step 4 of 4", "evaluated at step 4")
    ]
    assert any(line.startswith("Next:") for line in lines)
    shown = json.loads(said.out)
    kept = json.loads((tmp_path / "out" / "all_results.json").read_text(encoding="utf-8"))
    assert shown.keys() == kept.keys()
    assert shown["eval_loss"] == pytest.approx(kept["eval_loss"], rel=1e-5)
    assert len(str(shown["eval_loss"])) < len(str(kept["eval_loss"]))


def test_only_errors_are_said_where_that_is_asked_for(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("transformers").setLevel(logging.INFO)  # as an earlier run of the same process leaves it
    assert main(["error" if word == "passive" else word for word in words]) == 0
    said = capfd.readouterr()
    assert said.err == ""
    assert "eval_loss" in json.loads(said.out)
