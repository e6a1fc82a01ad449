"""The two software stacks, each with its Python, and recorded runs on either."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.runs import script_flags
from support.warm import programs

ROOT = Path(__file__).parents[2]
MAIN = ROOT / ".venv" / "main" / "bin" / "python"
GAUDI = ROOT / ".venv" / "gaudi" / "bin" / "python"
RECORDER = ROOT / "tests" / "record_runs.py"
SPAWN = ROOT / "launchers" / "gaudi_spawn.py"
HPU_FOLDER = ROOT / ".venv" / "hpu"
"""Holds the simulated device for the main stack, which no other process may meet."""


@dataclass(frozen=True, kw_only=True)
class Road:
    """A road to Gaudi: a Python, and the variables with which its processes run on the simulated device."""

    python: Path
    variables: Mapping[str, str]

    def __str__(self) -> str:
        return "habana" if self.python == GAUDI else "gaudi"


def on_new_road(**variables: str) -> dict[str, str]:
    """Return the variables of a process that runs on the simulated device by transformers 5's own support."""
    return {"PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{HPU_FOLDER}", "PT_HPU_LAZY_MODE": "0", **variables}


OLD_ROAD = Road(python=GAUDI, variables={"PT_HPU_LAZY_MODE": "1"})
NEW_ROAD = Road(python=MAIN, variables=on_new_road())
ROADS = (OLD_ROAD, NEW_ROAD)
both_roads = pytest.mark.parametrize("road", ROADS, ids=str)
"""For tests on the Gaudi stack, whose transformers makes models that both roads load."""


def on_cpu(model: Path, data: Path, output: Path, **flags: object) -> list[str]:
    """Return the flags of a small run on the CPU."""
    return script_flags(model, data, output, **flags)


def on_hpu(model: Path, data: Path, output: Path, **flags: object) -> list[str]:
    """Return the flags of the same run on the (simulated) Gaudi."""
    words = script_flags(model, data, output, **flags)
    place = words.index("--use_cpu")
    return [*words[:place], *words[place + 2 :], "--use_habana"]


def environment(python: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """Return a user's environment: the activated virtual environment, nothing of the test process's modes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PT_HPU", "RECORDER"))}
    return {
        **kept,
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "tests"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        **variables,
    }


def run_words(
    words: Sequence[str | Path],
    *,
    python: Path,
    cwd: Path = ROOT / "examples",
    variables: Mapping[str, str],
    cold: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run `python words...` as a user would, and return what it wrote and its exit code.

    The process is forked from a warm one (`support.warm`); `cold` is for tests whose point is how it starts.
    """
    program = python if cold else programs(python, variables) / "python"
    return subprocess.run(
        [str(program), *map(str, words)],
        cwd=cwd,
        env=environment(python, variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


def recorded(
    folder: Path,
    runs: Sequence[Sequence[str]],
    *,
    python: Path,
    launcher: Sequence[str | Path] = (),
    variables: Mapping[str, str],
    cwd: Path = ROOT / "examples",
    cold: bool = False,
) -> list[list[dict[str, Any]]]:
    """Run lists of flags under the recorder; return the records, a list per rank. A failure fails the test."""
    folder.mkdir(parents=True)
    (folder / "runs.json").write_text(json.dumps([list(map(str, flags)) for flags in runs]), encoding="utf-8")
    report = folder / "report.json"
    words = [*launcher, RECORDER, report, folder / "runs.json"]
    done = run_words(words, python=python, cwd=cwd, variables=variables, cold=cold)
    assert done.returncode == 0, done.stderr[-6000:]
    ranks = [report, *sorted(folder.glob("report.json.*"))]
    return [json.loads(path.read_text(encoding="utf-8")) for path in ranks]


def losses_of(ranks: Sequence[dict[str, Any]]) -> list[float]:
    """Return each step's loss: the sum over ranks and micro-batches, for one run's records by rank."""
    return [
        sum(sum(step["losses"]) for step in steps) for steps in zip(*(rank["steps"] for rank in ranks), strict=True)
    ]
