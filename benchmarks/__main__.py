"""`python -m benchmarks`: CPU time and memory beside TRL and a plain script, a table and a JSON file.

    python -m benchmarks [--stages checkpointing,peaks] [--rounds 15] [--json benchmarks/results/cpu.json]

Every contender is a process with one thread; they take turns round by round, after their first losses were found
equal. Figures are ratios of CPU time: the median of all rounds, its quartiles in brackets. Stages are written into
the JSON file one by one; `--stages` repeats some and keeps the others. `python -m benchmarks.page` makes
docs/benchmarks.md's part of it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import ROOT
from benchmarks.compare import ContenderError, UnequalLossError
from benchmarks.figures import Results
from benchmarks.stages import STAGES, Context, Found

RESULTS = ROOT / "benchmarks" / "results" / "cpu.json"


def chosen_stages(words: str | None) -> list[str]:
    """Return the stages to run, in their order; the control is always among them.

    Raises:
        SystemExit: there is no such stage; the message lists those there are.
    """
    if words is None:
        return list(STAGES)
    wanted = [word.strip() for word in words.split(",") if word.strip()]
    unknown = [word for word in wanted if word not in STAGES]
    if unknown:
        raise SystemExit(f"--stages {','.join(unknown)}: allowed are {', '.join(STAGES)}.")
    return [name for name in STAGES if name in wanted or name == "control"]


def main(arguments: list[str] | None = None) -> None:
    """Run stages and print what they find."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", help=f"some of {', '.join(STAGES)}, joined by commas (all)")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contender (15)")
    parser.add_argument("--epochs", type=int, default=3, help="turns of whole epochs (3)")
    parser.add_argument("--json", type=Path, default=RESULTS, help="the file of results")
    parser.add_argument("--folder", type=Path, help="where models and rows are made (a temporary folder)")
    own = parser.parse_args(arguments)
    names = chosen_stages(own.stages)
    place = own.folder or Path(tempfile.mkdtemp(prefix="benchmarks-"))
    # Contenders have one thread, ask no network, and leave nothing behind.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_PROGRESS_BARS="1")
    os.environ["HF_HOME"] = str(place / "hub")
    results = Results(own.json, {"rounds": own.rounds, "epochs": own.epochs})
    failed: list[str] = []
    try:
        for name in names:
            began = time.monotonic()
            print(f"\n{name}: {(STAGES[name].__doc__ or '').strip()}", flush=True)
            try:
                found = STAGES[name](Context(place=place, rounds=own.rounds, epochs=own.epochs))
            except (ContenderError, UnequalLossError) as error:
                if name == "control":
                    raise SystemExit(f"{error}\nNothing was measured.") from error
                failed.append(name)
                print(error, file=sys.stderr)
                found = Found(missing=[f"the stage failed: {str(error).strip().splitlines()[-1]}"])
            for figure in found.figures:
                print(f"  {figure.line()}", flush=True)
            for missing in found.missing:
                print(f"  missing: {missing}", flush=True)
            results.add(name, found.figures, found.missing, time.monotonic() - began)
    finally:
        if own.folder is None:
            shutil.rmtree(place, ignore_errors=True)
    print(f"\nWritten to {own.json}.", file=sys.stderr)
    if failed:
        raise SystemExit(f"Failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
