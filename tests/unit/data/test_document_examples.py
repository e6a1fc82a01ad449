"""docs/data.md: each of its example rows is read as the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from support.datasets import write_image
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.conversation import Conversation, ImageRef, Part, Turn
from vlm_lora.data.dataset import load_splits
from vlm_lora.data.images.loader import read_size

PAGE = Path(__file__).parents[3] / "docs" / "data.md"
LAYOUTS = PAGE.read_text(encoding="utf-8").split("## Layouts that are detected")[1].split("\n## ")[0]
EXAMPLES = re.findall(r"```text\n(.*?)\n```", LAYOUTS, flags=re.DOTALL)
LONGEST = 5


def told(conversation: Conversation) -> list[str]:
    """Write a conversation as the page does, a turn a line."""
    return [
        f"{turn.role}: {''.join((*thoughts(turn), *map(tell, turn.parts), *calls(turn)))}"
        for turn in conversation.turns
    ]


def thoughts(turn: Turn) -> list[str]:
    return [f"({turn.reasoning}) "] if turn.reasoning else []


def calls(turn: Turn) -> list[str]:
    return [f"{call.name}({call.arguments})" for call in turn.tool_calls]


def tell(part: Part) -> str:
    if not isinstance(part, ImageRef):
        return part.text.replace("\n", "\\n")
    if isinstance(part.source, Path):
        return f"<{part.source.name}>"
    return "<{}x{}>".format(*read_size(part.source))


def read_example(example: str, folder: Path) -> tuple[list[str], list[str]]:
    """Return the turns that the page shows for the last row, and those that it becomes."""
    lines = example.split("\n")
    rows = [line for line in lines if line.startswith("{")]
    for name in ("chart.png", "page.png"):
        write_image(folder / name, seed=1, size=(64, 48))
    path = folder / "train.jsonl"
    path.write_text("".join(f"{json.dumps(json.loads(row))}\n" for row in rows), encoding="utf-8")
    config = DataConfig(dataset_name=str(path), validation_fraction=0.0)
    data = load_splits(config, need_train=True, need_validation=False).train
    assert data is not None
    return lines[len(rows) :], told(data[len(rows) - 1])


def test_the_page_has_an_example_of_each_layout() -> None:
    named = set(re.findall(r"^\*\*(.+?)\*\*", LAYOUTS, flags=re.MULTILINE))
    blocks = re.split(r"^\*\*", LAYOUTS, flags=re.MULTILINE)[1:]
    assert len(named) == len(blocks) == 13
    assert all("```text" in block for block in blocks), "each layout has one"


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_example_becomes_what_the_page_says(example: str, tmp_path: Path) -> None:
    assert len(example.split("\n")) <= LONGEST
    shown, found = read_example(example, tmp_path)
    assert found == shown


def test_a_wrong_example_would_be_found(tmp_path: Path) -> None:
    shown, found = read_example(EXAMPLES[0].replace("assistant: 4", "assistant: 5"), tmp_path)
    assert found != shown
    shown, found = read_example(EXAMPLES[0].replace("user: <chart.png>", "user: <page.png>"), tmp_path)
    assert found != shown
