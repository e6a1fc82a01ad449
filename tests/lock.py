"""Write the lock of a stack: each version that its constraints pin, with the SHA-256 of the file that pip takes here.

`python tests/lock.py constraints-main.txt requirements-lock-main.txt`, by the Python of the stack's environment (`make
lock` does it for both). pip chooses the files as for an installation and installs nothing. Hashes are of one platform's
files. Build numbers behind a + are left out: which build of torch it is, says its hash.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HEAD = """\
# Made by `make lock` from {constraints}; not edited by hand. Every package of the stack with the SHA-256 of the file
# that was taken on {place}. pip install --no-deps --require-hashes -r {name}
"""


def report(constraints: Path) -> list[Mapping[str, Any]]:
    """Return what pip would install for the pins of a file, each with where its file is and its hash."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
    told = subprocess.run(
        [*command, "--report", "-", "-r", str(constraints)], check=True, stdout=subprocess.PIPE, text=True
    )
    return list(json.loads(told.stdout)["install"])


def lines(installed: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a line for each package, sorted by name: version and hash."""
    found = {}
    for package in installed:
        name = package["metadata"]["name"].lower().replace("_", "-").replace(".", "-")
        version = package["metadata"]["version"].partition("+")[0]
        found[name] = f"{name}=={version} --hash=sha256:{package['download_info']['archive_info']['hashes']['sha256']}"
    return [found[name] for name in sorted(found)]


def main() -> None:
    """Write the file that is named."""
    constraints, target = map(Path, sys.argv[1:])
    place = f"CPython {'.'.join(platform.python_version_tuple()[:2])}, {platform.system()} {platform.machine()}"
    head = HEAD.format(constraints=constraints.name, place=place, name=target.name)
    target.write_text(head + "\n".join(lines(report(constraints))) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
