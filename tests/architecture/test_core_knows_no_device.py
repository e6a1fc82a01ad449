"""The core names no device, no vendor and no engine's module: tables and names of hardware live in the adapters."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "vlm_lora"
DEVICE_TYPES = {"cuda", "hpu", "xpu", "mps"}
VENDORS = ("habana", "gaudi", "hpu", "cuda")
EXCEPTED = {"config/aliases.py"}
"""The table of other tools' flags, which are called as they are called."""
ADAPTERS_OWN = ("accelerate", "deepspeed", "optimum", "habana_frameworks", "bitsandbytes")
IMPORTERS = {"import_module", "__import__", "find_spec"}


def docstrings(tree: ast.AST) -> set[int]:
    """Return the ids of the strings that stand alone, which are documentation."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def device_mentions(source: str) -> list[str]:
    """Return `line: what` for each device string that is compared, assigned or passed, and for torch.cuda/torch.hpu."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value.split(":")[0] in DEVICE_TYPES:
                found.append(f"{node.lineno}: {node.value!r}")
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "torch"
            and node.attr in DEVICE_TYPES
        ):
            found.append(f"{node.lineno}: torch.{node.attr}")
    return found


def words(node: ast.AST) -> Iterator[str]:
    """Yield the names and texts of one node."""
    for field in ("id", "attr", "arg", "name", "module"):
        value = getattr(node, field, None)
        if isinstance(value, str):
            yield value
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def vendor_mentions(source: str) -> list[str]:
    """Return `line: what` for each name or text that holds a vendor's name, documentation excepted."""
    tree = ast.parse(source)
    documented = docstrings(tree)
    return [
        f"{getattr(node, 'lineno', 0)}: {word[:60]!r}"
        for node in ast.walk(tree)
        if id(node) not in documented
        for word in words(node)
        if any(vendor in word.lower() for vendor in VENDORS)
    ]


def late_imports(source: str) -> list[str]:
    """Return `line: module` where a module that only adapters may import is imported by its name as text."""
    return [
        f"{node.lineno}: {node.args[0].value!r}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", "")) in IMPORTERS
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and repr(node.args[0].value).strip("'").split(".")[0] in ADAPTERS_OWN
    ]


def test_no_module_names_a_device_a_vendor_or_an_engines_module() -> None:
    files = {str(path.relative_to(CORE)): path.read_text(encoding="utf-8") for path in sorted(CORE.rglob("*.py"))}
    assert len(files) > 100
    assert {path: found for path, source in files.items() if (found := device_mentions(source))} == {}
    assert {path: found for path, source in files.items() if (found := late_imports(source))} == {}
    named = {path: found for path, source in files.items() if (found := vendor_mentions(source))}
    assert named.keys() == EXCEPTED, named


@pytest.mark.parametrize(
    "source", ['x.to("cuda")', 'device = "cuda:0"', "torch.cuda.empty_cache()", 'if kind == "hpu": ...']
)
def test_the_check_sees_a_device(source: str) -> None:
    assert len(device_mentions(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "use_habana = 1",
        'raise E("type --use_habana")',
        'f"on {x} Gaudi cards"',
        "def f(cuda_count): ...",
        "import hpu_x",
    ],
)
def test_the_check_sees_a_vendor_and_not_in_documentation(source: str) -> None:
    assert vendor_mentions(source)
    assert not vendor_mentions('"""Gaudi, by habana."""\nx = 1\n"""As CUDA has it."""\n')


@pytest.mark.parametrize("call", ['importlib.import_module("deepspeed.ops")', 'find_spec("accelerate")'])
def test_the_check_sees_an_import_by_text(call: str) -> None:
    assert len(late_imports(call)) == 1
    assert not late_imports(call.replace("deepspeed", "numpy").replace("accelerate", "numpy"))
