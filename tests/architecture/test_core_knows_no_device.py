"""The core names no device: device tables live in the adapters."""

import ast
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "vlm_lora"
DEVICE_TYPES = {"cuda", "hpu", "xpu", "mps"}


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


def test_no_module_names_a_device() -> None:
    files = sorted(CORE.rglob("*.py"))
    assert len(files) > 100
    found = {str(path.relative_to(CORE)): device_mentions(path.read_text(encoding="utf-8")) for path in files}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source", ['x.to("cuda")', 'device = "cuda:0"', "torch.cuda.empty_cache()", 'if kind == "hpu": ...']
)
def test_the_check_sees_a_device(source: str) -> None:
    assert len(device_mentions(source)) == 1
