"""Before the training loader starts, every row and draw is encoded once, and none that an earlier run has read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.datasets import write_image, write_jsonl
from support.runs import script_flags
from vlm_lora import pipeline
from vlm_lora.batching.encoding import RowEncoder
from vlm_lora.cli.main import run_script
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.conversation import Conversation
from vlm_lora.data.dataset import load_splits
from vlm_lora.errors import UserError

ROWS = 8


def named(conversation: Conversation) -> str:
    return f"{conversation.source} {[turn.text for turn in conversation.turns]}"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count by row and texts what is encoded until the trainer has its data."""
    counted: Counter[str] = Counter()
    original = RowEncoder.encode

    def encode(self: RowEncoder, conversation: Conversation, **given: Any) -> Any:
        if conversation.source.row is not None:  # blank images and trial conversations are no rows
            counted[named(conversation)] += 1
        return original(self, conversation, **given)

    def stop(*args: Any, **kwargs: Any) -> Any:
        raise UserError("the loader would start now")

    monkeypatch.setattr(RowEncoder, "encode", encode)
    monkeypatch.setattr(pipeline, "build_run_trainer", stop)
    return counted


def is_asked_to_stop_at_the_loader(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script(words) == 1
    assert "the loader would start now" in capsys.readouterr().err


@pytest.fixture
def sizes(tmp_path: Path) -> Path:
    """Rows of images of many sizes: on Qwen's shape each takes other tokens."""
    folder = tmp_path / "data"
    for row in range(ROWS):
        write_image(folder / f"{row}.png", seed=row, size=(56 + 28 * row, 56))
    rows = [{"image": f"{row}.png", "question": f"Which is {row}?", "answer": "this one"} for row in range(ROWS)]
    write_jsonl(folder / "train.jsonl", rows)
    return folder


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """Pages that each epoch asks something else."""
    folder = tmp_path / "data"
    lines = [{"text": f"Line {line}", "bbox": [1, line * 9, 40, line * 9 + 8]} for line in range(4)]
    for row in range(ROWS):
        write_image(folder / f"{row}.png", seed=row, size=(48, 40))
    write_jsonl(folder / "train.jsonl", [{"image": f"{row}.png", "text": {"lines": lines}} for row in range(ROWS)])
    return folder


@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl"])
@pytest.mark.parametrize("shapes", ["false", "true"])
@pytest.mark.parametrize("policy", ["error", "drop", "shrink_images"])
def test_rows_of_many_sizes(
    family: str,
    shapes: str,
    policy: str,
    sizes: Path,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    encoded: Counter[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {"do_train": True, "do_eval": True, "validation_fraction": 0.25}
    words = script_flags(
        model_folder(family), sizes, tmp_path / "out", **given, static_shapes=shapes, on_overflow=policy
    )
    is_asked_to_stop_at_the_loader(words, capsys)
    assert sorted(encoded.values()) == [1] * ROWS, "every row, those held out too, once"
    encoded.clear()
    is_asked_to_stop_at_the_loader([*words, "--overwrite_output_dir", "true"], capsys)
    assert not encoded, "the table of the first run"


@pytest.mark.parametrize("shapes", ["false", "true"])
def test_pages_once_for_each_different_conversation(
    shapes: str,
    pages: Path,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    encoded: Counter[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {"do_train": True, "validation_fraction": 0, "num_train_epochs": 6, "task_seed": 1}
    words = script_flags(model_folder("gemma3"), pages, tmp_path / "out", **given, static_shapes=shapes)
    is_asked_to_stop_at_the_loader(words, capsys)
    config = DataConfig(dataset_name=str(pages), validation_fraction=0.0, task_seed=1)
    train = load_splits(config, need_train=True, need_validation=False).train
    assert train is not None
    epochs = 1 if shapes == "true" else 6  # planned shapes repeat the first epoch
    expected = {named(train.at(row, epoch=epoch)) for row in range(ROWS) for epoch in range(epochs)}
    assert encoded == dict.fromkeys(expected, 1)
    assert len(expected) == ROWS if epochs == 1 else len(expected) > 2 * ROWS


@pytest.mark.parametrize(
    ("shapes", "policy", "times"), [("false", "error", 0), ("true", "error", 1), ("false", "drop", 1)]
)
def test_without_the_check_rows_are_read_where_something_needs_them(
    shapes: str,
    policy: str,
    times: int,
    sizes: Path,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    encoded: Counter[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {"do_train": True, "validation_fraction": 0, "skip_check": True}
    words = script_flags(
        model_folder("qwen2_5_vl"), sizes, tmp_path / "out", **given, static_shapes=shapes, on_overflow=policy
    )
    is_asked_to_stop_at_the_loader(words, capsys)
    assert sorted(encoded.values()) == ([1] * ROWS if times else [1]), "of rows that nothing needs the first alone"
