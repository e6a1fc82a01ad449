"""The house as a whole: what stands at its root, how many files a room has, and no circle between files."""

from __future__ import annotations

from pathlib import Path

import grimp

from import_drawing import circles, edges, heights, room_of

ROOT = Path(__file__).parents[2]
FILES = ("__init__.py", "__main__.py", "py.typed", "errors.py", "compat.py", "backend.py", "progress.py")
VERBS = ("session.py", "assembly.py", "pipeline.py")
ROOMS = (
    "cli",
    "config",
    "launch",
    "engines",
    "data",
    "batching",
    "preflight",
    "model",
    "metrics",
    "serving",
    "training",
)
ABOVE = ("evaluation", "memory", "report", "deploy", "demo")
MOST = 20
"""Python files in one folder."""


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != "__pycache__"}


def crowded(places: tuple[str, ...], most: int) -> dict[str, int]:
    folders = {path.parent for place in places for path in (ROOT / place).rglob("*.py")}
    counts = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}
    return {folder: count for folder, count in counts.items() if count > most}


def test_the_root_has_these_entries_and_no_other() -> None:
    assert entries(ROOT / "vlm_lora") == {*FILES, *VERBS, *ROOMS, *ABOVE}


def test_no_room_is_crowded() -> None:
    assert crowded(("vlm_lora", "backends"), MOST) == {}
    assert crowded(("vlm_lora", "backends"), 10), "the control: with a lower limit some are"


def test_no_files_import_one_another_in_a_circle_and_no_arrow_goes_up() -> None:
    graph = grimp.build_graph("vlm_lora", include_external_packages=False)
    assert circles(graph) == []
    height = heights()
    known = [(a, b) for a, b in edges(graph) if room_of(a) in height and room_of(b) in height]
    assert len(known) > 500
    assert [pair for pair in known if height[room_of(pair[0])] < height[room_of(pair[1])]] == []


def test_the_search_sees_a_circle() -> None:
    """The control."""
    graph = grimp.ImportGraph()
    for module in ("a", "b", "c", "d"):
        graph.add_module(module)
    for importer, imported in (("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")):
        graph.add_import(importer=importer, imported=imported)
    assert circles(graph) == [("a", "b", "c")]
