"""Draw who imports whom: `python tests/import_drawing.py > house.dot`, then `dot -Tsvg house.dot`.

Files are nodes, in a box for each room; rooms stand in the order in which they may import one another. Circles between
files and arrows from a lower room to a higher one are named on stderr, and end it with 1.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import grimp
import tomllib

ROOT = Path(__file__).parents[1]
ADAPTERS = ("vlm_lora_torch", "vlm_lora_cuda", "vlm_lora_hpu", "vlm_lora_habana", "vlm_lora_gaudi")


def rooms() -> list[str]:
    """Return the rooms of the core from the highest to the lowest, as pyproject.toml has them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    [layers] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    return [layer.replace(" ", "") for layer in layers]


def heights() -> Mapping[str, int]:
    """Return how high each room stands, the lowest at 0."""
    return {room: height for height, layer in enumerate(reversed(rooms())) for room in layer.split("|")}


def room_of(module: str) -> str:
    """Return the room of a file of the core, or an adapter's name; empty for the package itself."""
    top, _, rest = module.partition(".")
    return rest.partition(".")[0] if top == "vlm_lora" else top


def edges(graph: grimp.ImportGraph) -> Iterator[tuple[str, str]]:
    """Yield (importer, imported) for files."""
    for module in sorted(graph.modules):
        for imported in sorted(graph.find_modules_directly_imported_by(module)):
            yield module, imported


def circles(graph: grimp.ImportGraph) -> list[tuple[str, ...]]:
    """Return the groups of files that import one another in a circle (Tarjan's algorithm)."""
    found: list[tuple[str, ...]] = []
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for imported in graph.find_modules_directly_imported_by(module):
            if imported not in index:
                visit(imported)
                low[module] = min(low[module], low[imported])
            elif imported in stack:
                low[module] = min(low[module], index[imported])
        if low[module] == index[module]:
            group: list[str] = []
            while not group or group[-1] != module:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(tuple(sorted(group)))

    for module in sorted(graph.modules):
        if module not in index:
            visit(module)
    return found


def main() -> int:
    """Print the drawing; return 1 where the house has a circle or an upward arrow."""
    sys.setrecursionlimit(10_000)
    graph = grimp.build_graph("vlm_lora", *ADAPTERS, include_external_packages=False)
    height = heights()
    lines = ["digraph house {", "  rankdir=BT;", "  node [shape=box, fontsize=9];"]
    for room in [*height, *ADAPTERS]:
        inside = " ".join(f'"{module}";' for module in sorted(graph.modules) if room_of(module) == room)
        lines.append(f'  subgraph "cluster_{room}" {{ label="{room}"; {inside} }}')
    upward = []
    for importer, imported in edges(graph):
        lines.append(f'  "{importer}" -> "{imported}";')
        below, above = height.get(room_of(importer)), height.get(room_of(imported))
        if below is not None and above is not None and below < above:
            upward.append(f"{importer} -> {imported}")
    sys.stdout.write("\n".join([*lines, "}", ""]))
    wrong = [f"circle: {' '.join(group)}" for group in circles(graph)] + [f"upward: {arrow}" for arrow in upward]
    sys.stderr.write("\n".join([*wrong, f"{len(graph.modules)} files, {graph.count_imports()} imports", ""]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
