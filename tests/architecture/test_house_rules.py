"""Rules of the house that no linter knows: file length, no swallowed errors, no skipped tests."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = sorted([*(ROOT / "vlm_lora").rglob("*.py"), *(ROOT / "backends").rglob("*.py")])
EVERYTHING = sorted([*PRODUCT, *(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").rglob("*.py")])
SKIPS = {"skip", "skipif", "xfail", "importorskip"}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def swallowed(tree: ast.AST) -> list[int]:
    """Lines of `except` bodies that do nothing at all."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and all(isinstance(child, ast.Pass) for child in node.body)
    ]


def skips(tree: ast.AST) -> list[int]:
    """Lines that skip a test or expect it to fail."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in SKIPS and "pytest" in ast.unparse(node)
    ]


@pytest.mark.parametrize("path", PRODUCT, ids=relative)
def test_product_file_is_short_and_says_its_purpose(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= 400
    assert ast.get_docstring(ast.parse(source)), "a module docstring says what the file is for"


@pytest.mark.parametrize("path", EVERYTHING, ids=relative)
def test_no_error_is_swallowed_and_no_test_skipped(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert swallowed(tree) == []
    assert skips(tree) == []


def test_the_rules_see_what_they_forbid() -> None:
    assert swallowed(ast.parse("try:\n    f()\nexcept ValueError:\n    pass")) == [3]
    assert skips(ast.parse("pytest.mark.skip('later')")) == [1]
