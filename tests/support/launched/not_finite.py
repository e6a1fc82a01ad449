"""One rank of runs that end at what is not finite, one after the other in this process.

`python -m torch.distributed.run ... not_finite.py RUNS.json REPORT.json`: RUNS.json holds pairs of flags and of what
goes wrong, if anything; REPORT.json (on rank 1 REPORT.json.1) gets each run's exit code and what it said on stderr.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
from pathlib import Path

import pytest

from support.poison import poison_gradient, poison_losses
from support.process import as_it_was
from vlm_lora.cli.main import run_script


def main(runs: Path, report: Path) -> None:
    """Run all, and write the report."""
    second = os.environ["RANK"] == "1"
    found = []
    for flags, what in json.loads(runs.read_text(encoding="utf-8")):
        said = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, as_it_was(), contextlib.redirect_stderr(said):
            if what == "loss" and second:
                poison_losses(patch, batch=2, row=0, value=math.nan)
            elif what == "gradient" and second:
                poison_gradient(patch, step=2, name="layers.1.mlp.up_proj.lora_B")
            code = run_script(flags)
        found.append({"code": code, "said": said.getvalue()})
    place = Path(f"{report}.1") if second else report
    place.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
