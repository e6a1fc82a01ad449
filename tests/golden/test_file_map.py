"""The map in CONTRIBUTING.md has one line per product file: the first sentence of its own docstring.

`make docs` writes it again.
"""

import ast
from pathlib import Path

from support.made_pages import check_made

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- file map: begin -->", "<!-- file map: end -->"


def file_map() -> str:
    lines: list[str] = []
    files = [path for place in ("vlm_lora", "backends", "examples") for path in (ROOT / place).rglob("*.py")]
    folder = None
    for path in sorted(files, key=lambda path: (path.parent, path.name)):
        if path.name == "__init__.py":
            continue
        if path.parent != folder:
            folder = path.parent
            lines += ["", f"**{folder.relative_to(ROOT)}/**", ""]
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        lines.append(f"- `{path.name}`: {' '.join(text.split(chr(10) * 2)[0].split())}")
    return "\n".join(lines)


def test_map_is_current() -> None:
    check_made(PAGE, BEGIN, END, file_map())
