"""Public data sets through whole commands: five are trained on, and the preview shows what each row was read as."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from support.public_schemas import BY_NAME, PUBLIC_SETS
from support.runs import logged, script_flags
from vlm_lora.cli.main import main, run_script

TRAINED = ("the_cauldron", "ScienceQA", "MMMU", "CPPE-5", "OCR-VQA")
"""Exchanges, a row without an image and numbers of choices, several images in place, boxes, parallel lists."""

SHOWN = [one.name for one in PUBLIC_SETS if one.told]


@pytest.mark.parametrize("name", TRAINED)
def test_it_is_trained_on(name: str, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    one = BY_NAME[name]
    flags = {"max_steps": 2, "validation_fraction": 0, "learning_rate": 1e-2, "do_train": True, "seed": 1}
    words = script_flags(model_folder("gemma3"), one.write(tmp_path / "data"), tmp_path / "out", **flags)
    assert run_script([*words, *one.ignored]) == 0
    losses = logged(tmp_path / "out", "loss")
    assert len(losses) == 2
    assert all(0 < loss < 20 for loss in losses)


@pytest.mark.parametrize("name", SHOWN)
def test_the_preview_shows_the_conversation(
    name: str, model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = BY_NAME[name]
    words = [*one.words(one.write(tmp_path)), "--model_name_or_path", str(model_folder("gemma3")), "--json"]
    words += ["--box_coordinates", "pixels"]  # as the conversations here are written
    capsys.readouterr()
    assert main(["preview", *words, "--rows", str(len(one.told))]) == 0
    rows = json.loads(capsys.readouterr().out)
    told = [[without_numbers(turn) for turn in turns] for turns in one.told]
    assert [turns_of(row["text"]) for row in rows] == told
    answers = [[turn.removeprefix("assistant: ") for turn in turns if turn.startswith("a")] for turns in told]
    assert [[part["text"].removesuffix("<end_of_turn>") for part in row["supervised"]] for row in rows] == answers
    # The control: the same words by the other side are another conversation.
    assert turns_of(rows[0]["text"].replace("<start_of_turn>user", "<start_of_turn>model", 1)) != told[0]


def turns_of(text: str) -> list[str]:
    """Return the turns of a text as the model reads it, with `<>` for each image."""
    roles = {"user": "user", "model": "assistant"}
    found = re.findall(r"<start_of_turn>(user|model)\n(.*?)<end_of_turn>", text, flags=re.DOTALL)
    image = re.compile(r"\s*<start_of_image>.*?<end_of_image>\s*", re.DOTALL)
    return [f"{roles[role]}: {image.sub('<>', said)}" for role, said in found]


def without_numbers(turn: str) -> str:
    role, said = turn.split(": ", maxsplit=1)
    shown = re.sub(r"\s*<[0-9]>\s*", "<>", said)
    return f"{role}: {shown}"
