"""Rules of the house that no linter knows: file length, no swallowed errors, no skipped tests."""

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRODUCT = sorted([*(ROOT / "vlm_lora").rglob("*.py"), *(ROOT / "backends").rglob("*.py")])
EVERYTHING = sorted([*PRODUCT, *(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").rglob("*.py")])
SKIPS = {"skip", "skipif", "xfail", "importorskip"}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def too_long(source: str) -> bool:
    return source.count("\n") > 500


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


def twice(names: list[str]) -> list[str]:
    """Names of test files that pytest would take for one another."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def test_no_two_test_files_of_a_stack_have_one_name() -> None:
    """They are modules of no package: pytest refuses the second one, and its tests would be missing."""
    files = [path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(files) > 250
    for other in ("gaudi", "without_gaudi"):
        assert twice([path.name for path in files if path.parts[0] != other]) == []
    assert twice([path.name for path in files]), "the control: the two stacks share a name"


def test_product_files_are_short_and_say_their_purpose() -> None:
    """A module docstring says what a file is for."""
    sources = {relative(path): path.read_text(encoding="utf-8") for path in PRODUCT}
    assert len(sources) > 100
    assert [path for path, source in sources.items() if too_long(source)] == []
    assert [path for path, source in sources.items() if not ast.get_docstring(ast.parse(source))] == []


def test_no_error_is_swallowed_and_no_test_skipped() -> None:
    trees = {relative(path): ast.parse(path.read_text(encoding="utf-8")) for path in EVERYTHING}
    assert len(trees) > 250
    assert {path: lines for path, tree in trees.items() if (lines := swallowed(tree))} == {}
    assert {path: lines for path, tree in trees.items() if (lines := skips(tree))} == {}


def test_the_rules_see_what_they_forbid() -> None:
    assert swallowed(ast.parse("try:\n    f()\nexcept ValueError:\n    pass")) == [3]
    assert skips(ast.parse("pytest.mark.skip('later')")) == [1]
    assert [too_long("\n" * lines) for lines in (500, 501)] == [False, True]
