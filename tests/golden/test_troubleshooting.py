"""What docs/troubleshooting.md quotes, the code says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"


def said(source: str) -> list[str]:
    """Return the texts of a file, its documentation left out."""
    tree = ast.parse(source)
    documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented
    ]


def quoted(page: str) -> list[str]:
    """Return the pieces of messages in the first column."""
    cells = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    return [piece for cell in cells for piece in re.findall(r"`([^`]+)`", cell)]


def test_every_quoted_message_is_one_of_the_codes() -> None:
    files = [path for place in ("vlm_lora", "backends") for path in (ROOT / place).rglob("*.py")]
    texts = [text for path in files for text in said(path.read_text(encoding="utf-8"))]
    pieces = quoted(PAGE.read_text(encoding="utf-8"))
    assert len(pieces) > 12
    assert [piece for piece in pieces if not any(piece in text for text in texts)] == []


def test_documentation_and_other_words_do_not_count() -> None:
    """The control."""
    assert said('"""A message."""\nx = f"no {y} such"\n') == ["no ", " such"]
    assert quoted("| `is gone` | what |\ntext `other`") == ["is gone"]
