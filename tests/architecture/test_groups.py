"""What tests of one file share is made once, however many workers there are.

pytest 9.2 keeps the names of tests where pytest-xdist 3.8 does not look: groups are silently without effect there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FILE = """
import pathlib, pytest

@pytest.fixture(scope="module", params=["a", "b"])
def shared(request):
    with (pathlib.Path(__file__).parent / "made.txt").open("a") as file:
        file.write(request.param)

def test_one(shared): pass
def test_two(shared): pass
"""


@pytest.mark.parametrize(("plugins", "made"), [(("-p", "support.grouping"), "ab"), ((), "aabb")])
def test_a_modules_fixture_is_made_once(plugins: tuple[str, ...], made: str, tmp_path: Path) -> None:
    """The control: without the plugin both workers make it."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (tmp_path / "test_shared.py").write_text(FILE, encoding="utf-8")
    words = (sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", "-p", "no:cacheprovider", *plugins)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        words, cwd=tmp_path, env={**environment, "PYTHONPATH": str(TESTS)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "".join(sorted((tmp_path / "made.txt").read_text(encoding="utf-8"))) == made
