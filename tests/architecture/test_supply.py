"""What is delivered: the wheel holds every file that the code reads, and the locks are those of the stacks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from lock import lines

ROOT = Path(__file__).parents[2]
PACKAGES = [ROOT / "vlm_lora", *sorted((ROOT / "backends").glob("vlm_lora_*"))]
STACKS = ("main", "gaudi")
MARKER = {"platform_system": "Linux", "python_version": "3.11", "sys_platform": "linux"}


def in_wheel(builder: WheelBuilder) -> set[str]:
    return {file.path for file in builder.recurse_included_files()}


def missing(builder: WheelBuilder) -> list[str]:
    """Files of the packages that a wheel would not have."""
    files = [file for package in PACKAGES for file in package.rglob("*") if file.is_file()]
    assert len(files) > 400
    held = in_wheel(builder)
    return sorted(str(file) for file in files if "__pycache__" not in file.parts and str(file) not in held)


def wheel(**changes: object) -> WheelBuilder:
    manager = PluginManager()
    metadata = ProjectMetadata(str(ROOT), manager)
    metadata.config["tool"]["hatch"]["build"]["targets"]["wheel"].update(changes)
    return WheelBuilder(str(ROOT), plugin_manager=manager, metadata=metadata, config=metadata.config["tool"]["hatch"])


def test_every_file_of_the_packages_is_in_the_wheel() -> None:
    """Templates, the demo's model, task files and modules of metrics as well; the control leaves out templates."""
    assert missing(wheel()) == []
    left_out = missing(wheel(exclude=["*.jinja"]))
    assert any(name.endswith("run.html.jinja") for name in left_out)
    assert all(name.endswith(".jinja") for name in left_out)


def pins(path: Path) -> dict[str, Version]:
    """Return versions by name: of a constraints file, or of a lock, each line of which must have a hash."""
    found: dict[str, Version] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        name, version, extra = re.fullmatch(r"([\w.-]+)==([\w.+]+)(.*)", line).groups()  # type: ignore[union-attr]
        assert re.fullmatch(r" --hash=sha256:[0-9a-f]{64}" if "lock" in path.name else "", extra), line
        found[canonicalize_name(name)] = Version(version.partition("+")[0])
    return found


def asked(path: Path) -> list[Requirement]:
    """Return the requirements of a file that hold on Linux, without what is not one."""
    texts = [line.partition(" #")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    found = [Requirement(text) for text in texts if text and not text.startswith(("#", "-"))]
    return [one for one in found if one.marker is None or one.marker.evaluate(MARKER)]


@pytest.mark.parametrize("stack", STACKS)
def test_the_lock_is_of_the_constraints(stack: str) -> None:
    lock = ROOT / f"requirements-lock-{stack}.txt"
    assert pins(lock) == pins(ROOT / f"constraints-{stack}.txt")
    assert len(pins(lock)) > 100
    assert "://" not in lock.read_text(encoding="utf-8")


def refused(requirements: list[Requirement], locked: dict[str, Version]) -> list[str]:
    names = {canonicalize_name(one.name): one for one in requirements}
    return sorted(name for name, one in names.items() if name not in locked or locked[name] not in one.specifier)


@pytest.mark.parametrize(
    ("stack", "files"),
    [
        ("main", ("requirements-test.txt", "requirements-cuda.txt", "requirements-hpu.txt")),
        ("gaudi", ("requirements-test-gaudi.txt", "requirements-hpu-optimum.txt")),
    ],
)
def test_what_is_asked_for_is_locked_in_a_version_that_fits(stack: str, files: tuple[str, ...]) -> None:
    locked = pins(ROOT / f"requirements-lock-{stack}.txt")
    requirements = [one for file in files for one in asked(ROOT / file)]
    project = ProjectMetadata(str(ROOT), PluginManager()).config["project"]
    own = [*project["dependencies"], *(project["optional-dependencies"]["dev"] if stack == "main" else ())]
    requirements += [Requirement(text) for text in own]
    assert len(requirements) > 30
    assert refused(requirements, locked) == []
    assert refused([Requirement("torch>=99"), Requirement("nobody")], locked) == ["nobody", "torch"], "the control"


def test_a_line_of_the_lock() -> None:
    archive = {"archive_info": {"hashes": {"sha256": "0" * 64}}, "url": "https://files.example/torch.whl"}
    told = [
        {"metadata": {"name": name, "version": version}, "download_info": archive}
        for name, version in (("torch", "2.13.0+cpu"), ("Jinja2", "3.1.6"), ("typing_extensions", "4.16.0"))
    ]
    assert [line.split()[0] for line in lines(told)] == ["jinja2==3.1.6", "torch==2.13.0", "typing-extensions==4.16.0"]
    assert {line.split()[1] for line in lines(told)} == {f"--hash=sha256:{'0' * 64}"}


def test_make_audit_takes_both_locks_and_every_package() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "LOCKS := requirements-lock-main.txt requirements-lock-gaudi.txt\n" in makefile
    assert "pip-audit --strict " in makefile
    assert "audit" not in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
