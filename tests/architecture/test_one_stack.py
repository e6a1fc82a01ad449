"""What runs on one stack reaches none of the libraries in which the two stacks differ."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from support.one_stack import MAIN_STACK_ONLY

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
ADAPTERS = ("vlm_lora_torch", "vlm_lora_cuda", "vlm_lora_hpu", "vlm_lora_habana", "vlm_lora_gaudi")
PLACES = {"support": TESTS, "vlm_lora": ROOT, **dict.fromkeys(ADAPTERS, ROOT / "backends")}
"""Where our own packages are."""

DIFFERENT = {
    *("accelerate", "bitsandbytes", "deepspeed", "habana_frameworks", "optimum", "peft", "timm", "torchvision"),
    *("transformers", "trl"),
}
TOLD = (
    "{}: it reaches {}, in which the stacks differ. Put it into a folder that tests/support/one_stack.py does not list."
)


@cache
def imported(path: Path) -> frozenset[str]:
    """Return the names of all modules that a file may import, wherever in it; what is for type checkers is left out."""
    found: set[str] = set()
    left: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while left:
        node = left.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.arg) and node.arg == "model_folder":
            found.add("support.tiny")  # the fixture builds models
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        left += ast.iter_child_nodes(node)
    return frozenset(found)


def file_of(module: str) -> Path | None:
    """Return the file of a module of ours; None for others' and for names within a module."""
    base = PLACES.get(module.partition(".")[0])
    if base is None:
        return None
    path = base / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def reached(start: Path) -> set[str]:
    """Return which of the libraries a file imports itself or through files of ours."""
    seen, left = {start}, [start]
    found: set[str] = set()
    while left:
        for module in imported(left.pop()):
            found |= {module.partition(".")[0]} & DIFFERENT
            path = file_of(module)
            if path is not None and path not in seen:
                seen.add(path)
                left.append(path)
    return found


def test_what_runs_on_one_stack_needs_no_more() -> None:
    files = [path for place in MAIN_STACK_ONLY for path in sorted((TESTS / place).rglob("test_*.py"))]
    assert len(files) > 50
    wrong = {str(path.relative_to(TESTS)): sorted(libraries) for path in files if (libraries := reached(path))}
    assert [TOLD.format(*found) for found in wrong.items()] == []


def test_the_rule_sees_what_it_forbids(tmp_path: Path) -> None:
    sources = {
        "import os\nfrom vlm_lora.data.formats.rows import *": set(),
        "def test_it():\n    from peft.utils import constants": {"peft"},
        "from support.tiny import build_model_folder": {"transformers"},
        "from vlm_lora.cli.main import main": {"transformers"},
        "def test_it(model_folder): ...": {"transformers"},
    }
    for number, (source, expected) in enumerate(sources.items()):
        test = tmp_path / f"test_{number}.py"
        test.write_text(source, encoding="utf-8")
        assert reached(test) >= expected
        assert bool(reached(test)) == bool(expected), source
