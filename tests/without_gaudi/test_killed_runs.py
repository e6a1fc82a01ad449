"""SIGKILL at any moment, and the same command again: the run ends as if nothing had been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "kill_runs.py"
KILLS = os.environ.get("VLM_LORA_KILLS", "30")
SEED = os.environ.get("VLM_LORA_SEED", "0")


def test_whenever_it_is_killed_the_same_command_ends_with_the_same_weights(tmp_path: Path) -> None:
    """`VLM_LORA_KILLS=300` kills more often, `VLM_LORA_SEED=1` elsewhere; the script has the control."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "runs"), "--kills", KILLS, "--seed", SEED],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, (done.stdout, done.stderr[-3000:])
    report = json.loads(done.stdout[done.stdout.index("{\n") :])
    assert report["seed"] == int(SEED)
    assert report["faults"] == []
    assert sum(report["kills"].values()) == int(KILLS)
    assert min(report["kills"].values()) >= int(KILLS) // 6, report
    assert report["finished"] >= 1
    assert report["control"] == "other weights, as it must be"
