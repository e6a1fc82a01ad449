"""README's map has one line per product file: the first sentence of its own docstring.

`make docs` writes it again.
"""

import ast
import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
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
    text = README.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    made, tail = rest.split(END)
    if os.environ.get("UPDATE_DOCS") == "1":
        README.write_text(f"{head}{BEGIN}\n{file_map()}\n{END}{tail}", encoding="utf-8")
        return
    assert made.strip() == file_map().strip()
